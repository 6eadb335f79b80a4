"""Scoring passages against a query with a cross-encoder, which reads both together; with a smaller one for want of memory."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.backend import Backend
from bge_pipeline.embedding.calibration import CalibrationTexts, score_guard
from bge_pipeline.embedding.loading import load_backend
from bge_pipeline.embedding.models import ModelFiles, find_cross_encoder
from bge_pipeline.embedding.tasks import ScorePairs
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.errors import BgePipelineError, ModelUnavailable, OutOfMemory
from bge_pipeline.settings import Settings

_log = logging.getLogger(__name__)

SMALLER_MODEL = "BAAI/bge-reranker-base"
"""Used where there is no memory for the model of RERANKER_MODEL."""

_ORDER_STAYS = "results stay in the order of the first stage"


class ScoresPassages(Protocol):
    """What is asked of a cross-encoder."""

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Relevance float32 (n,) of passages for the query, in order; larger is more relevant."""
        ...


class CrossEncoder:
    """One model. Thread-safe."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer, backend: Backend, *, batch_size: int) -> None:
        self.model = files.name
        self.backend = backend
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Relevance logits float32 (n,) of passages for the query, in order; larger is more relevant.

        Raises:
            OutOfMemory: the device has no memory for even one pair.
            EncodingError: the model was closed.
        """
        if not len(docs):
            return np.empty(0, np.float32)
        tokens, _ = self._tokenizer.pairs([query] * len(docs), docs)
        return self.backend.run(tokens, max_texts=self._batch_size)[:, 0]


LoadsCrossEncoder = Callable[[str], CrossEncoder | None]
"""Loads the cross-encoder of a name; says so in the log and gives None where it cannot."""


class Reranker:
    """A cross-encoder, replaced for good by a smaller one when memory runs out while it scores. Thread-safe.

    Args:
        cross_encoder: what to begin with.
        smaller: name of what takes its place; None: there is nothing smaller.
        load: loads it, once the larger one has given its memory back.
    """

    def __init__(self, cross_encoder: CrossEncoder, smaller: str | None, load: LoadsCrossEncoder) -> None:
        self._cross_encoder = cross_encoder
        self._smaller = smaller
        self._load = load
        self._scoring = 0
        self._is_open = True
        self._is_lost = False
        self._changed = threading.Condition()

    @property
    def model(self) -> str:
        """Name of the model in use."""
        return self._cross_encoder.model

    @property
    def backend(self) -> Backend:
        """What runs the model in use."""
        return self._cross_encoder.backend

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Relevance logits float32 (n,) of passages for the query, in order; larger is more relevant.

        Raises:
            OutOfMemory: there is no memory for even one pair in the smallest model.
            EncodingError: the reranker was shut down.
        """
        while True:
            tried = self._enter()
            try:
                return tried.score(query, docs)
            except MemoryError as error:
                if not self._has_smaller(tried):
                    raise
                problem = _reason(error)
            finally:
                self._leave()
            # Not before: the error's traceback holds the network and its states.
            self._replace(tried, problem)

    def rank(self, query: str, docs: Sequence[str], top_k: int | None = None) -> list[int]:
        """Indices of the `top_k` most relevant passages, best first; equals keep their order. All when not given."""
        return best_first(self.score(query, docs))[:top_k]

    def close(self) -> None:
        """Release the model and the device's memory."""
        with self._changed:
            self._smaller = None
            self._cross_encoder.backend.close()

    def _enter(self) -> CrossEncoder:
        with self._changed:
            self._changed.wait_for(lambda: self._is_open)
            if self._is_lost:
                raise OutOfMemory("there was no memory for a reranker", next_step="restart the process when there is")
            self._scoring += 1
            return self._cross_encoder

    def _leave(self) -> None:
        with self._changed:
            self._scoring -= 1
            self._changed.notify_all()

    def _has_smaller(self, tried: CrossEncoder) -> bool:
        """Whether another model takes the place of the one that failed, or has done so."""
        with self._changed:
            if self._cross_encoder is not tried or not self._is_open:
                return True
            if self._smaller is not None and not _is_at_hand(self._smaller):
                self._smaller = None
            return self._smaller is not None

    def _replace(self, tried: CrossEncoder, problem: str) -> None:
        """Load the smaller model, unless another thread did, when nobody uses the larger one any more."""
        with self._changed:
            if self._cross_encoder is not tried or self._smaller is None or not self._is_open:
                return
            name, self._smaller, self._is_open = self._smaller, None, False
            try:
                _log.warning("reranker %s: %s; trying %s", tried.model, problem, name)
                self._changed.wait_for(lambda: self._scoring == 0)
                tried.backend.close()
                self._is_lost = True
                smaller = self._load(name)
                if smaller is not None:
                    self._cross_encoder, self._is_lost = smaller, False
            finally:
                self._is_open = True
                self._changed.notify_all()


def load_reranker(settings: Settings, calibration_texts: CalibrationTexts | None = None) -> Reranker | None:
    """The reranker that RERANKER_MODEL names, a smaller one when memory runs out, or None when neither loads.

    What could not be loaded, and what that means, is logged as a warning.

    Raises:
        ConfigurationError: the model is no cross-encoder, or cannot run as asked.
    """

    def load(name: str) -> CrossEncoder | None:
        try:
            return _load(name, settings, calibration_texts)
        except (ModelUnavailable, MemoryError) as error:
            otherwise = _ORDER_STAYS if name == SMALLER_MODEL else f"trying {SMALLER_MODEL}"
            _log.warning("reranker %s: %s; %s", name, _reason(error), otherwise)
            return None

    names = list(dict.fromkeys([settings.reranker_model, SMALLER_MODEL]))
    for name, smaller in zip(names, [*names[1:], None], strict=True):
        loaded = load(name)
        if loaded is not None:
            return Reranker(loaded, smaller, load)
    return None


@dataclass(frozen=True)
class Scores:
    """What a reranker made of passages.

    Attributes:
        values: float32 (n,), None where there are none.
        problem: why there are none, for people; empty where there are some.
    """

    values: NDArray[np.float32] | None
    problem: str = ""


def try_to_score(load: Callable[[], ScoresPassages | None], query: str, docs: Sequence[str]) -> Scores:
    """Scores, or why there are none: a search never fails for its reranker, whatever that raises or returns.

    Args:
        load: gives the reranker, None where none can be loaded.
        query: as it was typed.
        docs: the passages.
    """
    try:
        reranker = load()
        if reranker is None:
            return Scores(None, "no reranker could be loaded; the log says which were tried")
        scores = np.asarray(reranker.score(query, docs), np.float32)
    except BgePipelineError as error:
        return Scores(None, f"the reranker failed: {error.message}")
    except Exception as error:  # noqa: BLE001 - logged, and told to whoever searches
        _log.exception("the reranker failed")
        return Scores(None, f"the reranker failed: {type(error).__name__}: {error}")
    if scores.shape != (len(docs),) or np.isnan(scores).any():
        return Scores(
            None,
            f"the reranker failed: expected a number for each of {len(docs)} passages, got {scores.shape}"
            f" with {np.isnan(scores).sum()} that are none",
        )
    return Scores(scores)


def best_first(scores: NDArray[np.float32]) -> list[int]:
    """Indices from the highest score to the lowest; equals keep their order."""
    return [int(index) for index in np.argsort(-scores, kind="stable")]


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, BgePipelineError) else f"out of memory {error}".strip()


def _is_at_hand(name: str) -> bool:
    try:
        find_cross_encoder(name)
    except BgePipelineError as error:
        _log.warning("reranker %s: %s; the larger one stays", name, error.message)
        return False
    return True


def _load(name: str, settings: Settings, calibration_texts: CalibrationTexts | None) -> CrossEncoder:
    files = find_cross_encoder(name, allow_pickle=settings.allow_pickled_weights)
    cache_key = "reranker-" + hashlib.sha256(f"{files.revision} {files.max_tokens}".encode()).hexdigest()[:8]
    tokenizer, backend = load_backend(files, ScorePairs(), cache_key, settings, score_guard(calibration_texts))
    return CrossEncoder(files, tokenizer, backend, batch_size=settings.rerank_batch_size)
