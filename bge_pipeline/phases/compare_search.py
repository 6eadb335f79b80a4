"""Compare: what questions find with the old and with the new vectors, before the swap and until retire. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from bge_pipeline.database.catalog import Column
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import PhaseError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, require_table, space_of
from bge_pipeline.phases.verdict import compared_columns
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.old_model import old_encoder, released
from bge_pipeline.quality.own_queries import own_queries
from bge_pipeline.quality.side_by_side import RESULTS, Comparison, compare_questions, compare_rows
from bge_pipeline.search.column import SEARCHABLE_TYPES

QUESTIONS = 10
"""As many as a person looks through."""
OWN_QUESTIONS = "the user's own questions"


def can_compare(state: MigrationState) -> bool:
    """Whether the table has the old vectors and the new ones, and both can be searched."""
    if state.phase in ("legacy", "retired"):
        return False
    old = compared_columns(state).old
    return old is not None and old.type_name in SEARCHABLE_TYPES


def compare_search(
    migration: Migration,
    service: EmbeddingsService,
    questions: Sequence[str] = (),
    *,
    results: int = RESULTS,
) -> Comparison:
    """The first results of both columns for each question.

    Args:
        migration: names the table, and COMPARE_QUERIES, QUERY_LOG or EVAL_QUERIES.
        service: the new model.
        questions: what to ask; empty: ten of the user's own from the settings, else ten rows of the table as queries.
        results: of each column, at most.

    Raises:
        PhaseError: the table has not both the old vectors and the new ones.
        ConfigurationError: a source of questions cannot be read.
    """
    state = require_table(migration)
    target = migration.target
    if not can_compare(state):
        raise PhaseError(
            f"{target} is in phase {state.phase}: there are not two columns to compare",
            state="nothing was changed",
            next_step="bge-pipeline backfill, then compare-search again"
            if state.phase == "legacy"
            else "the old vectors are gone, or of a type that is not searched here: bge-pipeline search searches the new ones",
        )
    columns = compared_columns(state)
    source = "as asked" if questions else OWN_QUESTIONS
    with migration.database.autocommit() as connection:
        questions = questions or own_queries(connection, migration.settings, QUESTIONS)
        encoder = old_encoder(connection, migration.settings, columns) if questions else None
    with released(encoder):
        return compare_columns(migration, service, columns, encoder, questions, source=source, results=results)


def compare_columns(
    migration: Migration,
    service: EmbeddingsService,
    columns: ComparedColumns,
    encoder: QueryEncoder | None,
    questions: Sequence[str],
    *,
    source: str = OWN_QUESTIONS,
    results: int = RESULTS,
    seconds: float | None = None,
) -> Comparison:
    """The same of columns that were read before, `columns.old` among them.

    Args:
        migration: names the table.
        service: the new model.
        columns: both of them.
        encoder: the old model; None where it is not at hand.
        questions: what to ask; empty: ten rows of the table as queries.
        source: where the questions come from, in words.
        results: of each column, at most.
        seconds: after so many, and one question, no more is asked; None: all are.
    """
    assert columns.old is not None
    database, settings = migration.database, migration.settings
    if not questions:
        pairs = compare_rows(database, settings, columns, QUESTIONS, results=results, seconds=seconds)
        source = "rows of the table as questions, by their stored vectors; COMPARE_QUERIES or QUERY_LOG give your own"
    else:
        pairs = compare_questions(
            database, settings, service, columns, encoder, questions, results=results, seconds=seconds
        )
        if any(pair.row_id is not None for pair in pairs):
            source += "; the old model is not at hand, so the stored vectors of the row found first stand for each"
    return Comparison(str(migration.target), _told(columns.old), _told(columns.new), source, tuple(pairs))


def _told(column: Column) -> str:
    space = space_of(column)
    return f"{column.name!r}, {space.model if space else 'model not recorded'}, {column.dimensions} dimensions"
