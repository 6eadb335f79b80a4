"""From an application's segments to rows of the target table: names, types, and vectors that fit their column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg2.extras import Json

from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import EmbeddingSpaceMismatch, TargetTableError

Segment = Mapping[str, Any] | object
"""A mapping, or an object with attributes, that has `text`, `start_sec` and `end_sec` (or `start` and `end`)."""
Row = dict[str, Any]
"""Values by column, of a segment that gives them."""

_NOT_FOR_SEGMENTS = ("source_id", "video_id", "created_at")
_TIMES = ("start_sec", "end_sec")

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.atttypmod > 0 THEN a.atttypmod END,
       col_description(a.attrelid, a.attnum)
FROM pg_attribute a
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
"""


@dataclass(frozen=True)
class SegmentColumn:
    """A column that segments may fill; `dimensions` of a vector of fixed length."""

    name: str
    kind: str
    dimensions: int | None
    comment: str | None

    def adapted(self, value: Any, segment: int) -> Any:
        """The value as psycopg2 takes it.

        Raises:
            EmbeddingSpaceMismatch: a vector does not have the column's dimensions.
        """
        if self.kind in ("json", "jsonb"):
            return Json(_plain(value))
        if self.kind.startswith(("vector", "halfvec")):
            return self._vector(value, segment)
        return adapted(value)

    def _vector(self, value: Any, segment: int) -> str:
        vector = np.asarray(value, dtype=np.float32)
        if vector.ndim != 1 or (self.dimensions is not None and len(vector) != self.dimensions):
            note = ColumnNote.from_comment(self.comment)
            model = note.space.model if note and note.space else None
            raise EmbeddingSpaceMismatch(
                f"column {self.name!r} holds vectors of {self.dimensions} dimensions{f' by {model}' if model else ''}: "
                f"segment {segment} has an embedding of {' x '.join(map(str, vector.shape)) or 'no'} dimensions",
                state="nothing was written",
                next_step="embed with the model of the column (bge-pipeline status names it), or leave `embedding` out: "
                "bge-pipeline embeds what is pending",
            )
        return f"[{','.join(map(str, vector.tolist()))}]"


def read_columns(cursor: Any, target: TargetTable) -> dict[str, SegmentColumn]:
    """The columns of the table that a segment may fill.

    Raises:
        TargetTableError: the text or the embedding column is missing.
    """
    cursor.execute(_COLUMNS, [str(target)])
    columns = {row[0]: SegmentColumn(*row) for row in cursor.fetchall()}
    for name in (target.text_column, target.embedding_column):
        if name not in columns:
            raise TargetTableError(f"{target} has no column {name!r}", state="nothing was written")
    others = {*_NOT_FOR_SEGMENTS, *target.id_columns} - {*_TIMES}
    return {n: column for n, column in columns.items() if n not in others}


def segment_rows(segments: Sequence[Segment], target: TargetTable, columns: Mapping[str, SegmentColumn]) -> list[Row]:
    """What each segment gives for the columns; of two segments with the same start and end the last.

    Raises:
        EmbeddingSpaceMismatch: an embedding does not have the column's dimensions.
        TargetTableError: a segment lacks its text or times.
    """
    aliases = {
        target.text_column: ("text",),
        target.embedding_column: ("embedding",),
        "start_sec": ("start_sec", "start"),
        "end_sec": ("end_sec", "end"),
    }
    required = (*_TIMES, target.text_column)
    rows: dict[tuple[Any, Any], Row] = {}
    for number, segment in enumerate(segments):
        get = _getter(segment)
        row = {}
        for name, column in columns.items():
            value = next((v for alias in aliases.get(name, (name,)) if (v := get(alias)) is not None), None)
            if value is not None:
                row[name] = column.adapted(value, number)
        missing = [name for name in required if name not in row]
        if missing:
            raise TargetTableError(
                f"segment {number}: expected text, start_sec and end_sec, got no {', no '.join(missing)}",
                state="nothing was written",
            )
        rows[row["start_sec"], row["end_sec"]] = row
    return list(rows.values())


def adapted(value: Any) -> Any:
    """A value as psycopg2 takes it."""
    value = _plain(value)
    return Json(value) if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    """A Python value in place of an array or a number of NumPy or PyTorch."""
    return value.tolist() if hasattr(value, "tolist") else value


def _getter(segment: Segment) -> Callable[[str], Any]:
    return segment.get if isinstance(segment, Mapping) else lambda name: getattr(segment, name, None)
