"""Texts to token ids: one pass, no padding, truncation counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.families import family_of
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.errors import ModelUnavailable

_CHARACTERS_PER_TOKEN = 64
"""A text longer than this times the model's tokens is first read in part, so that a book costs no more than a page."""


class Tokenizer:
    """A model's fast tokenizer, cutting at the model's length. Thread-safe."""

    def __init__(self, files: ModelFiles, definition: Path | None = None) -> None:
        """Load the tokenizer.

        Args:
            definition: a `tokenizer.json` that `save` wrote earlier; without it the model's own files are read, which
                takes a second longer.
        """
        import tokenizers  # type: ignore[import-untyped]

        if definition is None:
            from transformers import AutoTokenizer

            try:
                slow_to_load = AutoTokenizer.from_pretrained(str(files.folder), use_fast=True, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise ModelUnavailable(f"{files.name}: expected a fast tokenizer in {files.folder}: {error}") from error
            self._tokenizer = tokenizers.Tokenizer.from_str(slow_to_load.backend_tokenizer.to_str())
            pad_token = slow_to_load.pad_token_id
            end_texts_with(self._tokenizer, family_of(files.config).ending(files.tokenizer_config))
        else:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(definition))
            pad_token = files.config.get("pad_token_id")
        self.pad_id = int(pad_token or 0)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(files.max_tokens)
        self._max_tokens = files.max_tokens
        self.has_types = int(files.config.get("type_vocab_size", 0)) > 1
        self._lower_case = files.lower_case

    def save(self, path: Path) -> None:
        """Write the tokenizer where `definition` finds it."""
        self._tokenizer.save(str(path))

    def texts(self, texts: Sequence[str]) -> tuple[RaggedTokens, NDArray[np.bool_]]:
        """Token ids of texts, and bool (n,) whether each was cut off."""
        encodings = self._encodings(texts)
        return self._ragged(encodings), self._truncated(encodings)

    def counts(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens of texts, int32 (n,), 0 for a text that becomes none at all; and bool (n,) whether each was cut off."""
        encodings = self._encodings(texts)
        return np.fromiter(map(len, encodings), np.int32, len(encodings)), self._truncated(encodings)

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        if self._lower_case:
            texts = [text.lower() for text in texts]
        longest = self._max_tokens * _CHARACTERS_PER_TOKEN
        encodings = self._tokenizer.encode_batch_fast([text[:longest] for text in texts])
        for position, text in enumerate(texts):
            if len(text) > longest and len(encodings[position].ids) < self._max_tokens:
                encodings[position] = self._tokenizer.encode(text)
        return list(encodings)

    def pairs(self, firsts: Sequence[str], seconds: Sequence[str]) -> tuple[RaggedTokens, NDArray[np.bool_]]:
        """Token ids of pairs of texts, and bool (n,) whether each was cut off."""
        longest = self._max_tokens * _CHARACTERS_PER_TOKEN
        encodings = self._tokenizer.encode_batch_fast(
            [(first[:longest], second[:longest]) for first, second in zip(firsts, seconds, strict=True)]
        )
        tokens = self._ragged(encodings)
        if not self.has_types:
            return tokens, self._truncated(encodings)
        types = np.fromiter(chain.from_iterable(encoding.type_ids for encoding in encodings), np.int32, len(tokens.ids))
        return replace(tokens, types=types), self._truncated(encodings)

    def _ragged(self, encodings: Sequence[Any]) -> RaggedTokens:
        # Some tokenizers turn an empty text into no tokens at all, of which no network makes a vector.
        lists = [encoding.ids or [self.pad_id] for encoding in encodings]
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        return RaggedTokens(np.fromiter(chain.from_iterable(lists), np.int32, int(offsets[-1])), offsets)

    def _truncated(self, encodings: Sequence[Any]) -> NDArray[np.bool_]:
        was_cut = (len(encoding) == self._max_tokens and bool(encoding.overflowing) for encoding in encodings)
        return np.fromiter(was_cut, np.bool_, len(encodings))


def end_texts_with(tokenizer: Any, end: str | None) -> None:
    """Let a text end with that token, if `tokenizer.json` adds nothing to a text of itself."""
    number = tokenizer.token_to_id(end) if end is not None else None
    if number is None or tokenizer.num_special_tokens_to_add(is_pair=False):
        return
    from tokenizers import processors

    ending = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, number)]
    )
    present = tokenizer.post_processor
    tokenizer.post_processor = processors.Sequence([present, ending]) if present else ending
