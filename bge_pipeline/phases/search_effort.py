"""The probes or ef_search that a new index needs, measured once before the swap and noted with the column."""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.notes import note_statement
from bge_pipeline.database.operator import Operator
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, require_same_parts
from bge_pipeline.quality.index_recall import least_effort
from bge_pipeline.quality.measure import NEIGHBOURS, RECALL_QUERIES
from bge_pipeline.quality.recall_queries import RecallQueries, sampled_queries
from bge_pipeline.quality.server_search import missing_effort
from bge_pipeline.search.column import read_column
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)


def note_search_effort(operator: Operator, settings: Settings, state: MigrationState) -> RecallQueries | None:
    """Find the probes or ef_search that reach more than QUALITY_MIN_ANN_RECALL and note them with the column.

    Returns what the gate may ask the index instead, answered by the same read of the column; None where nothing was measured.
    """
    if settings.search_probes is not None or settings.search_ef_search is not None:
        return None
    # Half-way to perfect: the gate measures on other queries, and must not fail by the luck of the sample.
    wanted = (1 + settings.quality_min_ann_recall) / 2
    column = state.filled.name
    with operator.database.autocommit() as connection:
        searched = read_column(connection, settings, column)
        if searched.index is None or searched.effort is None:
            return None
        index = searched.index.kind
        vectors = sampled_queries(connection, searched, 2 * RECALL_QUERIES)
        if not len(vectors):
            return None  # an empty table
        queries = RecallQueries(vectors, NEIGHBOURS)
        asked, for_gate = queries.dealt(connection, searched)
        found = least_effort(connection, settings, searched, asked, wanted, quickly=True)
    logger.info("%s=%d gives recall@%d of %.3f", found.setting, found.value, NEIGHBOURS, found.points[-1].recall)

    def note(connection: Connection) -> None:
        require_same_parts(connection, state)
        noted = describe_table(connection, operator.target).columns[column].note
        assert noted is not None, "require_same_parts has seen the note's space"
        measured = replace(noted, search_effort=found.value, search_effort_index=index)
        connection.execute(note_statement(operator.target, column, measured))

    operator.change(settings, f"swap: note {found.setting} with the column", note)
    return for_gate if len(for_gate.vectors) else None


def set_effort_on_server(migration: Migration, column: str) -> str | None:
    """Give new sessions of the application what the index of `column` needs, if SERVER_SEARCH_EFFORT=set and they have less.

    Returns the statement that was run. Where the role may not run it, a warning says so, and the gate judges what is there.
    """
    if migration.settings.server_search_effort != "set":
        return None
    with migration.database.autocommit() as connection:
        missing = missing_effort(connection, migration.settings, column)
        if missing is None:
            return None
        try:
            connection.execute(text(missing.statement.replace(":", "\\:")))
        except DBAPIError as error:
            logger.warning("%s was refused: %s", missing.statement, str(error.orig).strip())
            return None
    logger.info("%s, where it was %d, for sessions to come", missing.statement, missing.setting.value)
    return missing.statement
