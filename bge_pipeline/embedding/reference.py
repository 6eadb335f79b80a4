"""sentence-transformers itself as an encoder: what every other way to run a model must agree with, and what runs the rest.

The other ways, the accelerators, are `torch_backend` and `openvino`; `choosing` decides.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.distinct import distinct_texts
from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.families import family_of
from bge_pipeline.embedding.layouts import Batch, halves
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.library import ALL_TOKENS, load_by_library
from bge_pipeline.embedding.memory import MORE_MEMORY, is_out_of_memory, tokens_that_fit
from bge_pipeline.embedding.models import SentenceModel
from bge_pipeline.embedding.pooling import of_unit_length
from bge_pipeline.embedding.road import SENTENCE_TRANSFORMERS, Road
from bge_pipeline.embedding.tokenizer import Tokenizer, end_texts_with
from bge_pipeline.errors import EncodingError, ModelUnavailable, OutOfMemory
from bge_pipeline.space import EmbeddingSpace

_MOST_TEXTS = 4_096
_TOKENS_WITHOUT_TRANSFORMER = 1 << 18
"""In one batch of a model that only looks vectors up."""

_LAYOUT = Padded(pad_id=0)
"""Only to plan batches: the library pads for itself."""


@dataclass(frozen=True)
class _Texts:
    """Each text once, its tokens, and for every row which of them it holds."""

    texts: list[str]
    counts: NDArray[np.int32]
    which: NDArray[np.intp]
    is_query: bool


class ReferenceEncoder:
    """Embeds texts in sentence-transformers, those of about one length together. Thread-safe.

    Args:
        device: as PyTorch names it.
        precision: `fp32`, `bf16` or `fp16`.
        batch_size: most texts in one forward pass; as many as there is memory for when not given.

    Raises:
        ModelUnavailable: the library cannot load the model, or its files lack part of the weights.
        OutOfMemory: there is no memory for it.

    Attributes:
        road: why the model runs here.
    """

    library = SENTENCE_TRANSFORMERS
    concurrent_calls = 1

    def __init__(
        self, model: SentenceModel, *, device: str, precision: str = "fp32", batch_size: int | None = None
    ) -> None:
        self.device = device
        self.space: EmbeddingSpace = model.space(precision)
        self.road: Road | None = None
        self._batch_size = batch_size or _MOST_TEXTS
        self._running = threading.Lock()
        self._model: Any = _load(model, device, precision)
        self._tokenizer = _tokenizer(model)
        transformer = getattr(self._model, "transformers_model", None)
        self._token_budget = (
            tokens_that_fit(device, transformer.config.get_text_config())
            if transformer is not None
            else _TOKENS_WITHOUT_TRANSFORMER
        )

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Count the tokens of passages, with the passage prompt; the library tokenises them itself."""
        return self._tokenize(texts, is_query=False)

    def tokenize_queries(self, texts: Sequence[str]) -> TokenizedTexts:
        """As `tokenize`, for search queries with the query prompt."""
        return self._tokenize(texts, is_query=True)

    def encode(self, tokens: TokenizedTexts, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions), in order, of unit length; zeros for a text without a token.

        Raises:
            EncodingError: the device has no memory for even one text, or the encoder was shut down.
        """
        texts: _Texts = tokens.payload
        vectors = np.zeros((len(texts.texts), self.space.dimensions), np.float32)
        (readable,) = np.nonzero(texts.counts)
        left = _LAYOUT.plan(
            texts.counts[readable], token_budget=self._token_budget, max_texts=batch_size or self._batch_size
        )
        left.reverse()
        while left:
            batch = left.pop()
            rows = readable[batch.rows]
            try:
                vectors[rows] = self._run([texts.texts[row] for row in rows], is_query=texts.is_query)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(batch, error)
                left.extend(reversed(halves(_LAYOUT, batch)))
        return vectors[texts.which]

    def close(self) -> None:
        """Release the model and the device's memory."""
        with self._running:
            self._model = None
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()

    def _tokenize(self, texts: Sequence[str], *, is_query: bool) -> TokenizedTexts:
        distinct, which = distinct_texts(texts)
        prompt = self.space.query_prompt if is_query else self.space.passage_prompt
        prompted = [prompt + text for text in distinct]
        if self._tokenizer is not None:
            counts, truncated = self._tokenizer.counts(prompted)
        else:
            counts = np.fromiter((len(text.split()) for text in prompted), np.int32, len(prompted))
            truncated = counts > self.space.max_tokens
            counts = np.clip(counts, 1, self.space.max_tokens).astype(np.int32)
        return TokenizedTexts(_Texts(distinct, counts, which, is_query), counts[which], truncated[which])

    def _run(self, texts: list[str], *, is_query: bool) -> NDArray[np.float32]:
        # One at a time: tokenizers of transformers change their own state while they truncate.
        with self._running:
            if self._model is None:
                raise EncodingError("this encoder was shut down")
            encode = self._model.encode_query if is_query else self._model.encode_document
            vectors = encode(
                texts,
                prompt=self.space.query_prompt if is_query else self.space.passage_prompt,
                batch_size=len(texts),
                show_progress_bar=False,
            )
        unit: NDArray[np.float32] = of_unit_length(np.asarray(vectors, np.float32))
        return unit

    def _shrink(self, batch: Batch, error: BaseException) -> None:
        if len(batch.rows) == 1:
            raise OutOfMemory(
                f"out of memory on {self.device} with a single text of {batch.lengths[0]} tokens", next_step=MORE_MEMORY
            ) from error
        self._token_budget = max(1, min(self._token_budget, batch.shape[0] * batch.shape[1]) // 2)


def _load(model: SentenceModel, device: str, precision: str) -> Any:
    """The library's model, told what the model's own files leave to code that is not run."""
    import torch

    family = family_of(model.files.config)
    loaded = load_by_library(
        model.whole_folder,
        model.files.name,
        device=device,
        truncate_dim=model.dimensions,
        configuration=family.configuration,
        trusted_code=model.trusted_code,
    )
    if loaded.max_seq_length is not None and model.files.max_tokens != ALL_TOKENS:
        loaded.max_seq_length = model.files.max_tokens
    ending = family.ending(model.files.tokenizer_config)
    if ending is not None and model.trusted_code is None:
        end_texts_with(loaded.tokenizer.backend_tokenizer, ending)
    if not model.declares_pooling:
        for module in loaded:
            if type(module).__name__ == "Pooling":
                module.pooling_mode = model.pooling
    return loaded.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def _tokenizer(model: SentenceModel) -> Tokenizer | None:
    """What counts tokens; None for a model without a fast tokenizer, of which words are counted."""
    definition = model.files.folder / "tokenizer.json"
    try:
        if model.has_transformer:
            return Tokenizer(model.files)
        return Tokenizer(model.files, definition) if definition.is_file() else None
    except ModelUnavailable:
        return None
