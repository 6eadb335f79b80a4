"""Every bound by which vectors and searches are judged, and what it rests on; no other module has one of its own."""

from __future__ import annotations

from dataclasses import dataclass

UNIT_LENGTH_TOLERANCE = 0.01
"""How far the length of a vector may be from 1: wide enough for fp16, bf16 and int8 arithmetic, far too narrow for a model
that does not normalise."""

SAME_VECTOR_COSINE = 0.9
"""Least cosine of two vectors of one text by one model; int8 and fp32 differ by less than 0.05 in it, poolings by more
than 0.1, and two texts hardly reach it."""

SERVER_RECALL_TOLERANCE = 0.05
"""By how much less of the nearest neighbours plain SQL may find than before: some three standard errors of 50 queries."""

MIN_ROWS_PER_NEIGHBOUR = 10
"""With fewer rows per neighbour, two unrelated rankings agree too often to prove anything."""


@dataclass(frozen=True)
class GateBounds:
    """The least that each measurement must reach.

    The defaults of the label-free bounds lie between what a right and what a damaged column measured
    (docs/quality-gate.md has the figures).

    Attributes:
        ndcg_retained: new nDCG@20 divided by old, over labelled queries.
        ann_recall: share of the exact nearest neighbours that the index finds.
        server_recall: the same share at the settings that the application's role has on the server; at most what the old
            index found there, less `SERVER_RECALL_TOLERANCE`.
        neighbour_agreement: overlap of the 20 nearest neighbours in the old and the new space, corrected for chance.
        known_item_success: share of rows that words out of their text find among the first 20.
        pooling_advantage: MRR of known items with the configured pooling minus that with the best other one.
        stored_vectors_matching: share of stored vectors that the model makes again from the stored text.
        unit_length: share of stored vectors of unit length.
        read_whole: share of texts that the model reads to their end.
    """

    ndcg_retained: float = 0.92
    ann_recall: float = 0.95
    server_recall: float = 0.95
    neighbour_agreement: float = 0.03
    known_item_success: float = 0.70
    pooling_advantage: float = -0.03
    stored_vectors_matching: float = 0.99
    unit_length: float = 1.0
    read_whole: float = 0.5

    @classmethod
    def for_search(cls, *, reranked: bool) -> GateBounds:
        """The default bounds: a search that reranks must retain 0.95 of nDCG@20, one that does not 0.92."""
        return cls(ndcg_retained=0.95 if reranked else 0.92)
