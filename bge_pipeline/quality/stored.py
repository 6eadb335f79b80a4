"""Whether stored vectors are what they should be: of unit length, of the encoder's space, what it makes of their texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.sampling import sample_lengths, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.quality.bounds import SAME_VECTOR_COSINE, UNIT_LENGTH_TOLERANCE, GateBounds
from bge_pipeline.quality.label_free import StoredVectorAgreement, stored_vectors_match
from bge_pipeline.space import EmbeddingSpace

_LENGTH_SAMPLE_ROWS = 10_000
_SPACE_SAMPLE_ROWS = 32


@dataclass(frozen=True)
class LengthCheck:
    """Lengths of sampled vectors; the bounds are None where there was no vector."""

    sampled_rows: int
    rows_off_length: int
    shortest: float | None
    longest: float | None

    @property
    def passed(self) -> bool:
        """Whether every sampled vector has unit length."""
        return self.rows_off_length == 0

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class SpaceCheck:
    """Whether the column holds what the encoder makes.

    Attributes:
        recorded: the embedding space in the column's comment.
        configured: the encoder's.
        is_same: whether the two are one space.
        agreement: of their vectors with what the encoder makes; None without rows, and in another space.
    """

    column: str
    recorded: str | None
    configured: str
    is_same: bool
    agreement: StoredVectorAgreement | None

    @property
    def passed(self) -> bool:
        """Whether search with this encoder finds what it should in this column, by the quality gate's own bound."""
        bound = GateBounds().stored_vectors_matching
        return self.is_same and (self.agreement is None or self.agreement.matching_share >= bound)

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        found = self.agreement
        return {
            "column": self.column,
            "recorded": self.recorded,
            "configured": self.configured,
            "is_same": self.is_same,
            "sampled_rows": found.rows if found else 0,
            "lowest_cosine": found.min_cosine if found else None,
            "mean_cosine": found.mean_cosine if found else None,
            "least_cosine_expected": SAME_VECTOR_COSINE,
        }


def check_lengths(
    connection: Connection, target: TargetTable, column: Column, id_range: IdRange | None = None
) -> LengthCheck:
    """Measure the vectors of the range, or a sample of the table's."""
    lengths = sample_lengths(connection, target, column.name, _LENGTH_SAMPLE_ROWS, id_range=id_range)
    if not len(lengths):
        return LengthCheck(0, 0, None, None)
    off = int((np.abs(lengths - 1) > UNIT_LENGTH_TOLERANCE).sum())
    return LengthCheck(len(lengths), off, float(lengths.min()), float(lengths.max()))


def check_space(
    connection: Connection,
    target: TargetTable,
    column: Column,
    recorded: EmbeddingSpace | None,
    encoder: Encoder,
    id_range: IdRange | None = None,
) -> SpaceCheck:
    """Compare the recorded embedding space with the encoder's, and stored vectors with those it makes of the same texts.

    The second half finds what no comment can tell: a wrong pooling, vectors in the wrong rows, a stale vector.
    """
    is_same = encoder.space.is_same_as(recorded)
    agreement = None
    if is_same:
        rows = sample_vectors(connection, target, [column.name], _SPACE_SAMPLE_ROWS, id_range=id_range)
        if len(rows):
            made = encoder.encode(encoder.tokenize(rows.texts))
            agreement = stored_vectors_match(rows.vectors[column.name], made)
    return SpaceCheck(
        column=column.name,
        recorded=str(recorded) if recorded is not None else None,
        configured=str(encoder.space),
        is_same=is_same,
        agreement=agreement,
    )
