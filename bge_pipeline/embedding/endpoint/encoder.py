"""An endpoint as an encoder: requests at once, halved where the server refuses them, down to the text at fault."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.encoder import PLAIN_SENTENCE, TextsRefused, TokenizedTexts
from bge_pipeline.embedding.endpoint.address import Address, endpoint_space
from bge_pipeline.embedding.endpoint.batches import requests_of
from bge_pipeline.embedding.endpoint.budget import Budget
from bge_pipeline.embedding.endpoint.client import EndpointClient
from bge_pipeline.embedding.endpoint.limits import shared_limits
from bge_pipeline.embedding.endpoint.refusals import Refused
from bge_pipeline.embedding.endpoint.token_counts import CountedTexts, make_counter
from bge_pipeline.errors import EncodingError
from bge_pipeline.settings import ModelSettings

logger = logging.getLogger(__name__)

USUAL_TEXTS = 256
"""In one request, where EMBEDDING_BATCH_SIZE is not set."""
_MOST_TEXTS = 2_048
"""Texts that OpenAI takes in one request."""
_FEW_TEXTS = 32
"""The fewest in one request to which refusals teach us to go; Text Embeddings Inference takes so many by default."""
_NO_LIMIT = 1 << 31
_CALLS = 4
"""Threads that prepare texts for the requests, at most."""
_SHORTER = 0.75
"""What is left of a text that the server finds too long, each time it does."""
_SHORTEST_CHARACTERS = 64


@dataclass
class _Request:
    """Texts of one request and what became of them: vectors (n, dimensions), which were cut, which the server refuses and why."""

    texts: list[str]
    counts: NDArray[np.int32]
    is_reserved: bool
    vectors: NDArray[np.float32]
    truncated: NDArray[np.bool_]
    abandoned: threading.Event
    reasons: dict[int, str] = field(default_factory=dict)

    def part(self, positions: range) -> _Request:
        """Some of the texts, whose results are results of the whole, but for the reasons."""
        places = slice(positions.start, positions.stop)
        return _Request(
            self.texts[places],
            self.counts[places],
            self.is_reserved,
            self.vectors[places],
            self.truncated[places],
            self.abandoned,
        )

    def take(self, part: _Request, first: int) -> None:
        """The reasons of a part that began at `first`."""
        self.reasons.update({first + position: reason for position, reason in part.reasons.items()})


class EndpointEncoder:
    """Embeds texts by an OpenAI-compatible endpoint. Thread-safe.

    Vectors are made unit length here, since the protocol does not promise it.

    Args:
        settings: EMBEDDING_MODEL, EMBEDDING_DIMENSIONS and those of the endpoint.

    Raises:
        ConfigurationError: a variable that it needs is missing or wrong.
        ModelUnavailable: EMBEDDING_TOKENIZER cannot be found.
    """

    def __init__(self, settings: ModelSettings) -> None:
        address = Address.from_settings(settings)
        self.space = endpoint_space(settings)
        self.device = address.host
        self.budget = Budget.from_settings(settings)
        self.concurrent_calls = min(settings.embedding_concurrency, _CALLS)
        self._address = address
        self._counter = make_counter(settings)
        limits = shared_limits(
            address.url, settings.embedding_requests_per_minute, settings.embedding_tokens_per_minute
        )
        self._client = EndpointClient(
            address,
            limits,
            connections=settings.embedding_concurrency,
            timeout_seconds=settings.embedding_timeout_seconds,
            max_attempts=settings.embedding_max_attempts,
        )
        self._pool = ThreadPoolExecutor(settings.embedding_concurrency, thread_name_prefix="endpoint")
        self._most_texts = min(settings.embedding_batch_size or USUAL_TEXTS, _MOST_TEXTS)
        self._most_tokens = min(settings.embedding_request_tokens, limits.tokens_per_minute or _NO_LIMIT)
        self._learning = threading.Lock()
        self._asking = threading.Lock()
        self._has_answered = False

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Passages with their prompt, counted and cut to EMBEDDING_TEXT_TOKENS; nothing is sent."""
        return self._counted(texts, self.space.passage_prompt)

    def tokenize_queries(self, texts: Sequence[str]) -> TokenizedTexts:
        """Queries with their prompt, counted and cut likewise."""
        return self._counted(texts, self.space.query_prompt)

    def encode(self, tokens: TokenizedTexts, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Vectors float32 (n, dimensions), in order, of unit length.

        A text that only a shorter one of is taken by the server is noted in `tokens.truncated`.

        Raises:
            TextsRefused: the server does not take some of the texts; it has the vectors of the others.
            ModelUnavailable, ConfigurationError, EmbeddingSpaceMismatch, EncodingError: as `EndpointClient.embed`.
        """
        counted: CountedTexts = tokens.payload
        n = len(tokens)
        whole = _Request(
            counted.texts,
            tokens.token_counts,
            counted.is_reserved,
            np.empty((n, self.space.dimensions), np.float32),
            tokens.truncated,
            tokens.abandoned,
        )
        most_texts = min(batch_size or self._most_texts, self._most_texts)
        ranges = list(requests_of(tokens.token_counts, most_texts, self._most_tokens))
        parts = [whole.part(positions) for positions in ranges]
        self._embed_all(parts)
        for positions, part in zip(ranges, parts, strict=True):
            whole.take(part, positions.start)
        self._make_unit_length(whole)
        if whole.reasons:
            raise TextsRefused(self._address.host, whole.reasons, whole.vectors)
        return whole.vectors

    def close(self) -> None:
        """Close the connections; requests that wait for an answer or for another attempt give up."""
        self._client.close()
        self._pool.shutdown()

    def _counted(self, texts: Sequence[str], prompt: str) -> TokenizedTexts:
        return self._counter.count([prompt + text for text in texts], self.space.max_tokens)

    def _embed_all(self, requests: Sequence[_Request]) -> None:
        """The requests at once; where one fails, or Ctrl-C ends the wait, those that have not gone yet never do."""
        self._client.require_open()
        under_way: list[Future[None]] = []
        try:
            under_way.extend(self._pool.submit(self._embed, request) for request in requests)
            _, left = wait(under_way, return_when=FIRST_EXCEPTION)
            for future in left:
                future.cancel()
            wait(left)
        except BaseException:
            for request in requests:
                request.abandoned.set()
            raise
        for future in under_way:
            if not future.cancelled():
                future.result()
        if any(future.cancelled() for future in under_way):
            self._client.require_open()

    def _embed(self, request: _Request) -> None:
        expected = int(request.counts.sum())
        try:
            answer = self._client.embed(request.texts, expected, request.abandoned)
        except Refused as refusal:
            if len(request.texts) > 1:
                self._embed_halves(request, refusal)
                return
            self._require_answering()
            if refusal.is_length and len(request.texts[0]) > _SHORTEST_CHARACTERS:
                request.texts[0] = request.texts[0][: int(len(request.texts[0]) * _SHORTER)]
                request.truncated[0] = True
                self._embed(request)
            else:
                request.vectors[0], request.reasons[0] = np.nan, f"{self._address.host} refuses the text: {refusal}"
                self.budget.settle(expected, 0, is_reserved=request.is_reserved)
            return
        # What a server reports may be something else, as characters are with infinity: what was counted here comes first.
        spent = expected if self._counter.is_exact else answer.tokens or expected
        self.budget.settle(expected, spent, is_reserved=request.is_reserved)
        request.vectors[:] = answer.vectors
        self._has_answered = True

    def _require_answering(self) -> None:
        """Before a first answer, see that the server takes any text: a bad key comes as 400 too, and no shorter text ends that.

        Raises:
            EncodingError: it refuses a plain sentence.
        """
        with self._asking:
            if self._has_answered:
                return
            counted = self._counted([PLAIN_SENTENCE], "")
            try:
                self._client.embed([PLAIN_SENTENCE], int(counted.token_counts.sum()))
            except Refused as refusal:
                raise EncodingError(
                    f"{self._address.host} fails on a plain sentence: {refusal}",
                    state="every committed batch is kept, no row was quarantined for it",
                    next_step="correct EMBEDDING_API_KEY, EMBEDDING_MODEL or EMBEDDING_DIMENSIONS, then run it again; it resumes",
                ) from refusal
            self._has_answered = True

    def _embed_halves(self, request: _Request, refusal: Refused) -> None:
        n = len(request.texts)
        half = n // 2
        for positions in (range(half), range(half, n)):
            part = request.part(positions)
            self._embed(part)
            request.take(part, positions.start)
        with self._learning:
            if not request.reasons and _FEW_TEXTS < n <= self._most_texts:
                self._most_texts = max(_FEW_TEXTS, n - half)
                logger.info(
                    "%s does not take %d texts at once (%s); it gets at most %d from now on, as with EMBEDDING_BATCH_SIZE=%d",
                    self._address.host,
                    n,
                    refusal,
                    self._most_texts,
                    self._most_texts,
                )

    def _make_unit_length(self, request: _Request) -> None:
        lengths = np.linalg.norm(request.vectors.astype(np.float64), axis=1)
        is_sound = np.isfinite(lengths) & (lengths > 0)
        for position in np.flatnonzero(~is_sound).tolist():
            request.reasons.setdefault(
                position,
                f"{self._address.host} made a vector of length {lengths[position]}: expected finite numbers, not all 0",
            )
        lengths[~is_sound] = 1
        request.vectors /= lengths[:, None].astype(np.float32)
