"""Discover: the vector columns of a database, the framework that each looks like, and the settings that would name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bge_pipeline.database.connection import Database
from bge_pipeline.database.vector_columns import VectorColumn, find_vector_columns
from bge_pipeline.settings.column_list import join_columns

_FRAMEWORKS = (
    ("LangChain PGVectorStore", {"langchain_id", "content"}, "content"),
    ("LangChain PGVector", {"collection_id", "document", "cmetadata"}, "document"),
    ("LlamaIndex", {"node_id", "metadata_", "text"}, "text"),
    ("Haystack", {"blob_data", "blob_meta", "content"}, "content"),
    ("agno", {"content_hash", "meta_data", "content"}, "content"),
    ("Open WebUI", {"collection_name", "vmetadata", "text"}, "text"),
    ("mem0", {"vector", "payload"}, "payload->>'data'"),
    ("vecs", {"vec", "metadata"}, None),
)
"""Name, columns by which its tables are known, and the text: a column, an expression, None where the application decides."""

_LIKELY_TEXTS = ("text", "content", "body", "document", "chunk", "passage", "page_content", "description")


@dataclass(frozen=True)
class Discovered:
    """A vector column that could be migrated.

    Attributes:
        found: it, as the catalog has it.
        framework: whose table it looks like; None where it is like none that is known.
        id_columns: what TARGET_ID_COLUMN would be; none where nobody can tell.
        text: a column, or an expression over the row; None where nobody can tell.
        model: what made its vectors; None where that is not recorded.
    """

    found: VectorColumn
    framework: str | None
    id_columns: tuple[str, ...]
    text: str | None
    model: str | None

    @property
    def name(self) -> str:
        """Schema, table and column with dots between."""
        return f"{self.found.schema}.{self.found.table}.{self.found.column}"

    def settings(self) -> dict[str, str]:
        """The variables that name it; those that nobody can tell are missing."""
        of_text = "TARGET_TEXT_COLUMN" if self.text in self.found.columns else "TARGET_TEXT"
        values = {
            "TARGET_SCHEMA": self.found.schema,
            "TARGET_TABLE": self.found.table,
            "TARGET_ID_COLUMN": join_columns(self.id_columns) or None,
            of_text: self.text,
            "TARGET_EMBEDDING_COLUMN": self.found.column,
        }
        return {name: value for name, value in values.items() if value is not None}

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "type": self.found.type,
            "dimensions": self.found.dimensions,
            "rows": self.found.rows,
            "index": self.found.index,
            "framework": self.framework,
            "model": self.model,
            "settings": self.settings(),
        }


def discover(database: Database) -> list[Discovered]:
    """Every vector column that search may read, by name. Changes nothing and reads no row."""
    with database.autocommit() as connection:
        return [recognise(found) for found in find_vector_columns(connection)]


def recognise(found: VectorColumn) -> Discovered:
    """What can be told of a column from its table's shape."""
    framework, text = next(
        ((name, column) for name, columns, column in _FRAMEWORKS if columns <= set(found.columns)), (None, None)
    )
    key = found.keys[0] if found.keys else ()
    if framework is None:
        text = _likely_text([name for name in found.texts if name not in key])
    space = found.note.space if found.note is not None else None
    return Discovered(found, framework, key, text, str(space) if space is not None else None)


def _likely_text(texts: list[str]) -> str | None:
    if len(texts) == 1:
        return texts[0]
    return next((name for name in _LIKELY_TEXTS if name in texts), None)
