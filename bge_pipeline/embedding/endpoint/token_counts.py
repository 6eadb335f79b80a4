"""Tokens of texts before they are sent: counted by the model's tokenizer where it is at hand, else estimated from characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.model_folder import BUNDLED, find_folder
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline.settings import EndpointSettings

_ASCII_CHARACTERS_A_TOKEN = 4
"""OpenAI's rule of thumb for English, https://platform.openai.com/tokenizer; other characters count as a token each."""
_FILE = "tokenizer.json"
_HUB_TIMEOUT_SECONDS = 5
_LONGEST_READ_CHARACTERS = 64
"""Characters for each token of the limit that the tokenizer is given, so that a book costs no more than a page."""


@dataclass(frozen=True)
class CountedTexts:
    """Texts cut to the model's length; `is_reserved` where their tokens are set aside in the budget."""

    texts: list[str]
    is_reserved: bool = False


class TextCounter(Protocol):
    """Counts tokens and cuts texts."""

    @property
    def is_exact(self) -> bool:
        """Whether tokens are counted, not estimated."""
        ...

    def count(self, texts: Sequence[str], limit: int) -> TokenizedTexts:
        """The texts, each cut to `limit` tokens, as `CountedTexts`."""
        ...


class CharacterEstimate:
    """A token for every four ASCII characters, and for every other character."""

    is_exact = False

    def count(self, texts: Sequence[str], limit: int) -> TokenizedTexts:
        """The texts, each cut where the estimate reaches `limit`."""
        kept = [self._cut(text, limit) for text in texts]
        return _counted(texts, kept, [self._tokens(text) for text in kept])

    @staticmethod
    def _tokens(text: str) -> int:
        others = 0 if text.isascii() else sum(not character.isascii() for character in text)
        return max(1, -(-(len(text) - others) // _ASCII_CHARACTERS_A_TOKEN) + others)

    def _cut(self, text: str, limit: int) -> str:
        if len(text) <= limit:
            return text
        if text.isascii():
            return text[: limit * _ASCII_CHARACTERS_A_TOKEN]
        quarters = accumulate(1 if character.isascii() else _ASCII_CHARACTERS_A_TOKEN for character in text)
        most = limit * _ASCII_CHARACTERS_A_TOKEN
        return text[: next((end for end, sum_ in enumerate(quarters) if sum_ > most), len(text))]


class TokenizerCounts:
    """What the endpoint's own tokenizer makes of a text.

    Args:
        name: hub name or folder with `tokenizer.json`.

    Raises:
        ModelUnavailable: there is none, or its file is torn.
    """

    is_exact = True

    def __init__(self, name: str) -> None:
        import tokenizers  # type: ignore[import-untyped]

        path = _definition(name)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library has no kind of its own
            raise ModelUnavailable(f"EMBEDDING_TOKENIZER={name}: expected a tokenizer in {path}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def count(self, texts: Sequence[str], limit: int) -> TokenizedTexts:
        """The texts, each cut behind its last token within `limit`, the model's special tokens included."""
        readable = [text[: limit * _LONGEST_READ_CHARACTERS] for text in texts]
        encodings = self._tokenizer.encode_batch(readable)
        kept, counts = [], []
        for text, encoding in zip(readable, encodings, strict=True):
            if len(encoding.ids) > limit:
                special = sum(encoding.special_tokens_mask)
                ends = [
                    end
                    for (_, end), is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
                    if not is_special
                ]
                text = text[: ends[max(1, limit - special) - 1]]  # noqa: PLW2901 - the text as it is sent
            kept.append(text)
            counts.append(min(limit, max(1, len(encoding.ids))))
        return _counted(texts, kept, counts)


def make_counter(settings: EndpointSettings) -> TextCounter:
    """The counter that EMBEDDING_TOKENIZER asks for.

    Raises:
        ModelUnavailable: it names no tokenizer.
    """
    name = settings.embedding_tokenizer
    return TokenizerCounts(name) if name is not None else CharacterEstimate()


def _definition(name: str) -> Path:
    """The file `tokenizer.json` of a folder, or of the hub, from which nothing else is fetched.

    Raises:
        ModelUnavailable: there is none.
    """
    if name == BUNDLED or Path(name).expanduser().is_dir():
        _, folder = find_folder(name, "EMBEDDING_TOKENIZER")
        path = folder / _FILE
        if not path.is_file():
            raise ModelUnavailable(f"EMBEDDING_TOKENIZER={name}: expected {_FILE} in {folder}")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, _FILE, etag_timeout=_HUB_TIMEOUT_SECONDS))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelUnavailable(
            f"EMBEDDING_TOKENIZER={name} is no folder, and the model hub cannot be reached or has no {_FILE} of it",
            next_step="set EMBEDDING_TOKENIZER to a folder that holds it, or leave it out: tokens are estimated then",
        ) from error


def _counted(texts: Sequence[str], kept: list[str], counts: list[int]) -> TokenizedTexts:
    was_cut = [len(short) < len(text) for text, short in zip(texts, kept, strict=True)]
    return TokenizedTexts(CountedTexts(kept), np.array(counts, np.int32), np.array(was_cut, np.bool_))
