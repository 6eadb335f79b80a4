"""Scoring passages against a query with a cross-encoder, which reads both together."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.backend import Backend
from bge_pipeline.embedding.calibration import CalibrationTexts, score_guard
from bge_pipeline.embedding.loading import load_backend
from bge_pipeline.embedding.models import ModelFiles, find_cross_encoder
from bge_pipeline.embedding.tasks import ScorePairs
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline.settings import Settings

_log = logging.getLogger(__name__)

SMALLER_MODEL = "BAAI/bge-reranker-base"
"""Tried when there is no memory for the model of RERANKER_MODEL."""


class Reranker:
    """A cross-encoder. Thread-safe."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer, backend: Backend, *, batch_size: int) -> None:
        self.model = files.name
        self.backend = backend
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Relevance logits float32 (n,) of passages for the query, in order; larger is more relevant.

        Raises:
            EncodingError: the device has no memory for even one pair, or the reranker was shut down.
        """
        if not len(docs):
            return np.empty(0, np.float32)
        tokens, _ = self._tokenizer.pairs([query] * len(docs), docs)
        return self.backend.run(tokens, max_texts=self._batch_size)[:, 0]

    def rank(self, query: str, docs: Sequence[str], top_k: int | None = None) -> list[int]:
        """Indices of the `top_k` most relevant passages, best first; equals keep their order. All when not given."""
        best_first = np.argsort(-self.score(query, docs), kind="stable")
        return [int(index) for index in best_first[:top_k]]

    def close(self) -> None:
        """Release the model and the device's memory."""
        self.backend.close()


def load_reranker(settings: Settings, calibration_texts: CalibrationTexts | None = None) -> Reranker | None:
    """The reranker that RERANKER_MODEL names, a smaller one when memory runs out, or None when neither loads.

    What could not be loaded, and what that means, is logged as a warning.

    Raises:
        ConfigurationError: the model is no cross-encoder, or cannot run as asked.
    """
    names = list(dict.fromkeys([settings.reranker_model, SMALLER_MODEL]))
    for name, next_name in zip(names, [*names[1:], None], strict=True):
        then = f"trying {next_name}" if next_name else "results stay in the order of the first stage"
        try:
            return _load(name, settings, calibration_texts)
        except MemoryError as error:
            _log.warning("reranker %s: %s; %s", name, error, then)
        except ModelUnavailable as error:
            _log.warning("reranker: %s; %s", error.message, then)
    return None


def _load(name: str, settings: Settings, calibration_texts: CalibrationTexts | None) -> Reranker:
    files = find_cross_encoder(name)
    cache_key = "reranker-" + hashlib.sha256(f"{files.revision} {files.max_tokens}".encode()).hexdigest()[:8]
    tokenizer, backend = load_backend(files, ScorePairs(), cache_key, settings, score_guard(calibration_texts))
    return Reranker(files, tokenizer, backend, batch_size=settings.rerank_batch_size)
