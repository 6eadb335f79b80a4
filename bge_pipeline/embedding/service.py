"""EmbeddingsService: the one object through which everything else turns text into vectors."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.agreement import Agreement
from bge_pipeline.embedding.calibration import CalibrationTexts
from bge_pipeline.embedding.encoder import QueryEncoder, TextsRefused, TokenizedTexts
from bge_pipeline.embedding.loading import load_encoder, road_of
from bge_pipeline.embedding.reranker import Reranker, best_first, load_reranker, try_to_score
from bge_pipeline.embedding.road import Road
from bge_pipeline.embedding.shared import shared_end, shared_method, shared_property
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.forked import in_forked_child
from bge_pipeline.settings import Settings, settings_from_env
from bge_pipeline.space import EmbeddingSpace

_log = logging.getLogger(__name__)

_WINDOW_TEXTS = 4_096
"""Texts tokenised and sorted by length together."""

_Window = tuple[NDArray[np.float32], TextsRefused | None]
"""Vectors, and why some texts have none that means anything, by their positions."""


class EmbeddingsService:
    """Embeds passages and queries, and reranks, with the models that the settings name. Thread-safe.

    `init_from_env` gives the process-wide instance; `from_settings` makes one of its own. What an instance does the class
    does too, by the process-wide one: `EmbeddingsService.encode_texts(texts)`.

    Attributes:
        encoder: the passage encoder; the backfill drives its `tokenize` and `encode` itself.
        settings: what the service was made with.
    """

    _instance: EmbeddingsService | None = None
    _instance_lock = threading.Lock()

    def __init__(
        self, encoder: QueryEncoder, settings: Settings, calibration_texts: CalibrationTexts | None = None
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self._calibration_texts = calibration_texts
        self._reranker: Reranker | None = None
        self._reranker_was_tried = False
        self._reranker_lock = threading.Lock()

    @classmethod
    def init_from_env(cls, settings: Settings | None = None) -> EmbeddingsService:
        """The process-wide service, made by the first call and shared by all later ones.

        Args:
            settings: in place of those from the environment.

        Raises:
            ConfigurationError: the model does not have EMBEDDING_DIMENSIONS dimensions, or a service with other
                settings is in use already.
            ModelUnavailable: the model or the library that runs it cannot be loaded.
        """
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls.from_settings(settings or settings_from_env())
            elif settings is not None and _model_settings(settings) != _model_settings(cls._instance.settings):
                raise ConfigurationError(
                    "expected the settings that the process-wide EmbeddingsService was made with, got others",
                    next_step="call shutdown() on it first, or use EmbeddingsService.from_settings(settings)",
                )
            return cls._instance

    @classmethod
    def current(cls) -> EmbeddingsService | None:
        """The process-wide service, None before `init_from_env` and after `shutdown`."""
        return cls._instance

    @classmethod
    def from_settings(cls, settings: Settings, calibration_texts: CalibrationTexts | None = None) -> EmbeddingsService:
        """A service of its own, not shared with anybody.

        Args:
            calibration_texts: gives texts like those to be embedded, for EMBEDDING_PRECISION=int8; asked only when no
                quantised model is cached yet.
        """
        return cls(load_encoder(settings, calibration_texts), settings, calibration_texts)

    @shared_property
    def space(self) -> EmbeddingSpace:
        """The embedding space of every vector this service returns."""
        return self.encoder.space

    @shared_property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.encoder.space.dimensions

    @shared_property
    def device(self) -> str:
        """Where the arithmetic happens, for example `cpu` or `cuda:0`."""
        return self.encoder.device

    @shared_property
    def quantization(self) -> Agreement | None:
        """How well int8 agrees with fp32 where EMBEDDING_PRECISION=int8; it is in use only if that is enough."""
        return self.encoder.backend.quantization if isinstance(self.encoder, TransformerEncoder) else None

    @shared_property
    def road(self) -> Road | None:
        """What runs the model, how that was proved, and what kept it off a faster way; None where there is no model to run."""
        return road_of(self.encoder)

    @shared_property
    def reranker(self) -> Reranker | None:
        """The cross-encoder of RERANKER_MODEL, loaded when first asked for; None when it cannot be loaded.

        Raises:
            ConfigurationError: the model is no cross-encoder, or cannot run as asked; said once, and None from then on.
        """
        with self._reranker_lock:
            if not self._reranker_was_tried:
                self._reranker_was_tried = True
                self._reranker = load_reranker(self.settings, self._calibration_texts)
            return self._reranker

    @shared_method
    def device_memory_bytes(self) -> int | None:
        """The most that was allocated on the GPU since the start or `forget_device_memory`; None on a CPU."""
        if not self.device.startswith("cuda"):
            return None
        import torch

        return int(torch.cuda.max_memory_allocated(self.device))

    @shared_method
    def forget_device_memory(self) -> None:
        """Let `device_memory_bytes` begin anew with what is allocated now."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)

    @shared_method
    def encode_texts(self, texts: Sequence[str], batch_size: int | None = None) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions) of passages, in order, of unit length; (0, dimensions) for no texts.

        Args:
            batch_size: most texts in one forward pass; EMBEDDING_BATCH_SIZE when not given, and without that as many as
                the device has memory for. Fewer go together where texts are long.

        Raises:
            TextsRefused: the model does not take some of the texts; it has the vectors of the others.
            EncodingError: the model failed on these texts.
        """
        batch_size = batch_size or self.settings.embedding_batch_size
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        refused: dict[int, str] = {}
        by = ""
        windows = (
            (first, self.encoder.tokenize(texts[first : first + _WINDOW_TEXTS]))
            for first in range(0, len(texts), _WINDOW_TEXTS)
        )
        for first, (window, refusal) in self._encode_concurrently(windows, batch_size):
            vectors[first : first + len(window)] = window
            if refusal is not None:
                by = refusal.encoder
                refused.update({first + position: reason for position, reason in refusal.reasons.items()})
        if refused:
            raise TextsRefused(by, refused, vectors)
        return vectors

    @shared_method
    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions) of search queries, with the model's query prompt."""
        return self.encoder.encode(self.encoder.tokenize_queries(texts), batch_size=self.settings.embedding_batch_size)

    @shared_method
    def rerank(self, query: str, docs: Sequence[str], top_k: int | None = None) -> list[int]:
        """Indices of the `top_k` passages most relevant to the query, best first.

        The order given, when ENABLE_RERANKER is off, or no reranker can be loaded, or it fails, which is logged.

        Args:
            top_k: RETURN_TOP_K when not given.
        """
        top_k = self.settings.return_top_k if top_k is None else top_k
        as_given = list(range(len(docs)))
        if not self.settings.enable_reranker:
            return as_given[:top_k]
        scores = try_to_score(lambda: self.reranker, query, docs)
        if scores.values is None:
            _log.warning("%s; passages stay in the order given", scores.problem)
            return as_given[:top_k]
        return best_first(scores.values)[:top_k]

    @shared_end
    def shutdown(self) -> None:
        """Release models and device memory; the next `init_from_env` makes a new service."""
        cls = type(self)
        with cls._instance_lock:
            if cls._instance is self:
                cls._instance = None
        self.encoder.close()
        with self._reranker_lock:
            if self._reranker is not None:
                self._reranker.close()
            self._reranker, self._reranker_was_tried = None, False

    def _encode_concurrently(
        self, windows: Iterator[tuple[int, TokenizedTexts]], batch_size: int | None
    ) -> Iterator[tuple[int, _Window]]:
        """Encode windows on as many threads as the device wants, while the next one is being tokenised here."""
        pool = ThreadPoolExecutor(self.encoder.concurrent_calls)
        under_way: deque[tuple[int, TokenizedTexts, Future[_Window]]] = deque()
        try:
            for first, tokens in windows:
                under_way.append((first, tokens, pool.submit(self._encode_window, tokens, batch_size)))
                if len(under_way) > self.encoder.concurrent_calls:
                    yield under_way[0][0], under_way[0][2].result()
                    under_way.popleft()
            while under_way:
                yield under_way[0][0], under_way[0][2].result()
                under_way.popleft()
        except BaseException as error:
            for _, tokens, _ in under_way:
                tokens.abandoned.set()
            pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
        pool.shutdown()

    def _encode_window(self, tokens: TokenizedTexts, batch_size: int | None) -> _Window:
        try:
            return self.encoder.encode(tokens, batch_size=batch_size), None
        except TextsRefused as refusal:
            return refusal.vectors, refusal


def _forget_in_child() -> None:
    """A child makes a service of its own when it asks for one."""
    EmbeddingsService._instance = None  # noqa: SLF001
    EmbeddingsService._instance_lock = threading.Lock()  # noqa: SLF001


in_forked_child(_forget_in_child)


def _model_settings(settings: Settings) -> dict[str, object]:
    """The settings that decide which models are loaded and how."""
    return {
        name: value
        for name, value in settings.model_dump().items()
        if name.startswith(("embedding_", "reranker_"))
        or name in ("enable_reranker", "rerank_batch_size", "trust_remote_code")
    }
