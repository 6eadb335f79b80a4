"""How many rows go into one commit: as many as keep the locks of their rows for as long as they may be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bge_pipeline.database.pending_reader import PendingBatch

_FIRST_ROWS = 100
_FEWEST_ROWS_FOR_A_PAGE_EACH = 50
_GROWTH = 1.5
_MARGIN = 0.8


class CommitSize:
    """How many rows go into one commit, so that their locks are held for `limit_ms` and no longer.

    Attributes:
        rows: of the next commit.
    """

    def __init__(self, limit_ms: float, most: int) -> None:
        self._limit = limit_ms / 1_000
        self._most = most
        self.rows = min(_FIRST_ROWS, most)

    def held(self, rows: int, seconds: float) -> None:
        """Learn from a commit of so many rows, whose locks were held for so long."""
        fitting = rows * self._limit / max(seconds, 1e-6)
        self.rows = max(1, min(self._most, int(min(fitting * _MARGIN, self.rows * _GROWTH + 1))))

    def pieces(self, batch: PendingBatch) -> Iterator[slice]:
        """The batch in commits; a page comes once in each, since what a row leaves is free after the commit."""
        first = 0
        while first < len(batch):
            last = min(first + self.rows, len(batch))
            if batch.blocks:
                last = self._before_a_page_comes_again(batch.blocks, first, last)
            yield slice(first, last)
            first = last

    @staticmethod
    def _before_a_page_comes_again(blocks: Sequence[int], first: int, last: int) -> int:
        seen: set[int] = set()
        for position in range(first, last):
            if blocks[position] in seen and position - first >= _FEWEST_ROWS_FOR_A_PAGE_EACH:
                return position
            seen.add(blocks[position])
        return last
