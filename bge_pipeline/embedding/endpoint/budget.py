"""A budget of tokens: what a backfill may still read of texts before it has cost enough."""

from __future__ import annotations

import threading

import numpy as np

from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.endpoint.token_counts import CountedTexts
from bge_pipeline.settings import EndpointSettings


class Budget:
    """Tokens that were spent, and those set aside for texts that are on their way. Thread-safe.

    Requests that nobody set anything aside for, such as the quality gate's, are spent all the same.

    Args:
        most_tokens: of one run; None: no limit.
        words: names the setting that sets the limit.
    """

    def __init__(self, most_tokens: int | None, words: str = "") -> None:
        self.most_tokens = most_tokens
        self.words = words
        self.spent = 0
        self._reserved = 0
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: EndpointSettings) -> Budget:
        """The smaller of EMBEDDING_MAX_TOKENS and EMBEDDING_MAX_COST."""
        limits: list[tuple[int, str]] = []
        if settings.embedding_max_tokens is not None:
            limits.append((settings.embedding_max_tokens, f"EMBEDDING_MAX_TOKENS={settings.embedding_max_tokens}"))
        if settings.embedding_max_cost is not None and settings.embedding_price_per_million:
            tokens = int(settings.embedding_max_cost / settings.embedding_price_per_million * 1_000_000)
            limits.append((tokens, f"EMBEDDING_MAX_COST={settings.embedding_max_cost:g}"))
        return cls(*min(limits)) if limits else cls(None)

    def reserve(self, tokens: TokenizedTexts) -> TokenizedTexts:
        """Set aside what the texts cost; returns the first of them, as many as can be paid for."""
        counted: CountedTexts = tokens.payload
        with self._lock:
            rows = len(tokens)
            if self.most_tokens is not None:
                left = self.most_tokens - self.spent - self._reserved
                rows = int(np.searchsorted(np.cumsum(tokens.token_counts, dtype=np.int64), left, side="right"))
            first = TokenizedTexts(
                CountedTexts(counted.texts[:rows], is_reserved=True),
                tokens.token_counts[:rows],
                tokens.truncated[:rows],
            )
            self._reserved += int(first.token_counts.sum())
        return first

    def settle(self, expected: int, spent: int, *, is_reserved: bool) -> None:
        """A request is answered, which was expected to cost so many tokens and did cost so many."""
        with self._lock:
            self.spent += spent
            if is_reserved:
                self._reserved = max(0, self._reserved - expected)

    def forget_reserved(self) -> None:
        """Nothing is on its way any more."""
        with self._lock:
            self._reserved = 0
