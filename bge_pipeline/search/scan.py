"""How thoroughly an ANN index is searched: probes, ef_search and iterative scans. Pure decisions; others execute them."""

from __future__ import annotations

import math
from dataclasses import dataclass

Session = dict[str, int | str]
"""Run-time parameters for one search, by name."""

EXACT_SCAN: Session = {"enable_indexscan": "off"}
"""Compares every row: no ANN index answers without an index scan."""

INDEX_SCAN: Session = {"enable_seqscan": "off", "enable_sort": "off"}
"""Makes the ANN index answer where the planner would rather compare every row, as it does on small tables."""

MAX_EF_SEARCH = 1_000
"""Largest hnsw.ef_search that pgvector takes."""

_EFFORT = {"ivfflat": "ivfflat.probes", "hnsw": "hnsw.ef_search"}
_MIN_EF_SEARCH = 100
_ITERATIVE_SINCE = (0, 8)


@dataclass(frozen=True)
class VectorIndex:
    """The ANN index that answers a search.

    Attributes:
        name: as in the catalog.
        method: `ivfflat`, `hnsw` or the access method of another extension.
        metric: `cosine`, `l2`, `ip` or `l1`.
        expression: what is indexed, as PostgreSQL prints it: the quoted column, or `(embedding::halfvec(384))`.
        element: `vector` or `halfvec`.
        lists: IVFFlat lists, 0 for others.
    """

    name: str
    method: str
    metric: str
    expression: str
    element: str
    lists: int

    @property
    def effort(self) -> str | None:
        """The parameter that says how thoroughly it is searched, `ivfflat.probes` or `hnsw.ef_search`; None for others."""
        return _EFFORT.get(self.method)

    @property
    def kind(self) -> str:
        """Method and lists: what a measured effort holds for, whatever the index's name is."""
        return f"{self.method}, lists={self.lists}" if self.lists else self.method

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.method}, {self.element}, {self.metric}{f', lists={self.lists}' if self.lists else ''})"
        )


def scan_settings(
    index: VectorIndex | None,
    pgvector: tuple[int, ...],
    candidates: int,
    *,
    probes: int | None = None,
    ef_search: int | None = None,
) -> Session:
    """Parameters for a search of `candidates` rows; an iterative scan goes on until filters have let enough through.

    Args:
        index: None for a column without one.
        pgvector: the extension's version; iterative scans come with 0.8.
        candidates: rows wanted.
        probes: IVFFlat lists to look into; None for `default_probes`.
        ef_search: HNSW's candidate list; None for `default_ef_search`.
    """
    if index is None or index.effort is None:
        return {}
    session: Session = {}
    if index.method == "ivfflat":
        session["ivfflat.probes"] = min(probes or default_probes(index.lists), max(1, index.lists))
    else:
        session["hnsw.ef_search"] = min(ef_search or default_ef_search(candidates), MAX_EF_SEARCH)
    if iterates(pgvector):
        session[f"{index.method}.iterative_scan"] = "relaxed_order"
    return session


def iterates(pgvector: tuple[int, ...]) -> bool:
    """Whether a scan goes on where too few of the rows it found pass a filter."""
    return pgvector >= _ITERATIVE_SINCE


def default_probes(lists: int) -> int:
    """Twice the square root of the lists.

    pgvector's advice is the square root (https://github.com/pgvector/pgvector#ivfflat), which found 89 to 96 of 100
    neighbours in the demo's vectors with 80 to 6 lists; twice as many found 95 and more (docs/search.md).
    """
    return max(1, min(lists, math.ceil(2 * math.sqrt(lists))))


def default_ef_search(candidates: int) -> int:
    """As many as are wanted and at least 100; below that HNSW's recall falls quickly."""
    return max(_MIN_EF_SEARCH, candidates)
