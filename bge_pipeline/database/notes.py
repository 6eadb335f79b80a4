"""What a column says about itself: JSON in `COMMENT ON COLUMN`, which survives renames and pg_dump."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import TextClause

from bge_pipeline.database.sql import with_values
from bge_pipeline.database.target import TargetTable
from bge_pipeline.space import EmbeddingSpace

_KEY = "bge_pipeline"

Role = Literal["legacy", "new", "current", "previous"]


@dataclass(frozen=True)
class ColumnNote:
    """The part a column plays in a migration.

    Attributes:
        role: `legacy` is what search read before any migration, `new` is being filled, `current` is what search reads
            after the swap, `previous` is kept for the way back.
        space: the embedding space of the vectors; None where nobody recorded it.
        dropped_indexes: definitions of the old ANN indexes that expand dropped, for the way back.
        not_null: whether the column was NOT NULL before the swap made it optional.
        comment: the user's own comment, kept word for word.
        embedding_column: on a `new` or `previous` column, the embedding column that it belongs to; a table may have
            several. None on an embedding column itself.
        search_effort: probes or ef_search with which the index reached the wanted recall when it was measured.
        search_effort_index: the kind of index that it was measured on (`VectorIndex.kind`); None where nobody noted it.
        rolled_back: on a `new` column, when it was exchanged back (UTC), until somebody agrees to go forward again.
        tuple_target_before: on a column that this project fills, the table's `toast_tuple_target` before expand lowered it,
            0 for the default; None where it was not lowered.
        text: the SQL of the text that the vectors were made of, where it was no plain column.
        maintained: on a `previous` column, whether this project, not the application, filled it before the swap.
    """

    role: Role
    space: EmbeddingSpace | None = None
    dropped_indexes: tuple[str, ...] = ()
    not_null: bool = False
    comment: str | None = None
    embedding_column: str | None = None
    maintained: bool = False
    search_effort: int | None = None
    search_effort_index: str | None = None
    rolled_back: str | None = None
    tuple_target_before: int | None = None
    text: str | None = None

    def with_role(self, role: Role) -> ColumnNote:
        """The same note for another role."""
        return replace(self, role=role)

    def as_comment(self) -> str:
        """The note as the text of a column comment."""
        held = {
            "dropped_indexes": list(self.dropped_indexes) or None,
            "not_null": self.not_null or None,
            "comment": self.comment,
            "embedding_column": self.embedding_column,
            "maintained": self.maintained or None,
            "search_effort": self.search_effort,
            "search_effort_index": self.search_effort_index,
            "rolled_back": self.rolled_back,
            "tuple_target_before": self.tuple_target_before,
            "text": self.text,
        }
        note: dict[str, Any] = {"role": self.role, "space": self.space.as_dict() if self.space is not None else None}
        note |= {name: value for name, value in held.items() if value is not None}
        return json.dumps({_KEY: note}, ensure_ascii=False)

    @classmethod
    def from_comment(cls, comment: str | None) -> ColumnNote | None:
        """The note in a column comment, or None where the comment is not one of ours."""
        if comment is None or _KEY not in comment:
            return None
        try:
            note = json.loads(comment)[_KEY]
            role, space = note["role"], note.get("space")
            space = EmbeddingSpace.from_dict(space) if space is not None else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return cls(
            role=role,
            space=space,
            dropped_indexes=tuple(note.get("dropped_indexes", ())),
            not_null=bool(note.get("not_null", False)),
            comment=note.get("comment"),
            embedding_column=note.get("embedding_column"),
            maintained=bool(note.get("maintained", False)),
            search_effort=note.get("search_effort"),
            search_effort_index=note.get("search_effort_index"),
            rolled_back=note.get("rolled_back"),
            tuple_target_before=note.get("tuple_target_before"),
            text=note.get("text"),
        )


def note_statement(target: TargetTable, column: str, note: ColumnNote) -> TextClause:
    """The statement that writes the note as the column's comment."""
    return comment_statement(target, column, note.as_comment())


def comment_statement(target: TargetTable, column: str, comment: str | None) -> TextClause:
    """The statement that sets or, with None, removes a column's comment."""
    if comment is None:
        return target.sql("COMMENT ON COLUMN {table}.{column} IS NULL", column=column)
    return with_values(target.sql("COMMENT ON COLUMN {table}.{column} IS :comment", column=column), comment=comment)
