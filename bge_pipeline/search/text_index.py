"""The GIN index that makes lexical and hybrid search fast. Search works without it, by reading every text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.database.connection import Database
from bge_pipeline.database.index_build import BuildResult
from bge_pipeline.database.index_on_partitions import IndexRecipe, build_index_on
from bge_pipeline.database.sql import shortened, with_values
from bge_pipeline.database.target import TargetTable
from bge_pipeline.settings import Settings

_MEMORY_BYTES = 256 << 20
"""A GIN build collects its entries in maintenance_work_mem; with much less it merges them many times over."""


def create_text_index(
    database: Database, settings: Settings, *, on_progress: Callable[[BuildProgress], None] | None = None
) -> BuildResult:
    """Index the words of the target table's text beside live traffic, unless a valid index is there.

    Raises:
        IndexBuildFailed: the server could not; search is as it was.
    """
    target = TargetTable.from_settings(settings)
    recipe = IndexRecipe(
        name=lambda table: text_index_name(table, settings.search_language),
        statement=lambda table, name, head: with_values(
            table.sql(f"{head} USING gin (to_tsvector(:language, {{text}}))", index=name),
            language=settings.search_language,
        ),
        column=target.text_column if target.row_text.is_column else None,
        memory_bytes=_MEMORY_BYTES,
    )
    return build_index_on(database, settings, target, recipe, on_progress=on_progress)


def text_index_name(target: TargetTable, language: str) -> str:
    """Name of the index; the digest keeps apart what the underscores might run together, and languages."""
    source = target.text_column if target.row_text.is_column else "text"
    exactly = f"{target.table}.{target.row_text.recorded or target.text_column}.{language}"
    digest = hashlib.sha256(exactly.encode()).hexdigest()[:8]
    return shortened(f"ix_{target.table}_{source}_words_{digest}")
