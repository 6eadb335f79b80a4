"""Warming an index: reading it into memory, so that the first searches are as fast as those after them."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import OPERATORS, IndexPlan
from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError

logger = logging.getLogger(__name__)

_SEARCHES = 20
_LONGEST_SEARCH_MS = 30_000
"""A search that the index does not answer, whatever the reason, reads the whole table."""
_MAY_PREWARM = """
SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = 'pg_prewarm' AND has_function_privilege(p.oid, 'EXECUTE')
WHERE e.extname = 'pg_prewarm' AND has_schema_privilege(n.oid, 'USAGE')
"""


def warm(database: Database, target: TargetTable, column: str, index: str, plan: IndexPlan) -> None:
    """Read the vector index: by pg_prewarm where the extension is there, else by searches for some of the column's vectors.

    What goes wrong here is logged: a cold index is slow and right.
    """
    try:
        with database.transaction() as connection:
            if not _prewarm(connection, target, index):
                _search(connection, target, column, plan)
    except (DBAPIError, BgePipelineError) as error:
        logger.info("index %s was not warmed: %s", index, str(getattr(error, "orig", error)).strip())


def _prewarm(connection: Connection, target: TargetTable, index: str) -> bool:
    schema = connection.execute(text(_MAY_PREWARM)).scalars().first()
    if schema is None:
        return False
    prewarm = target.sql(
        "SELECT {prewarm}(c.oid) FROM pg_class c WHERE c.relkind = 'i' AND c.oid IN (SELECT relid FROM "
        "pg_partition_tree(CAST(:index AS regclass)) UNION SELECT CAST(:index AS regclass))",
        prewarm=(schema, "pg_prewarm"),
    )
    connection.execute(prewarm, {"index": quote(target.schema, index)})
    return True


def _search(connection: Connection, target: TargetTable, column: str, plan: IndexPlan) -> None:
    """By the index's own operator, which no other index answers."""
    connection.execute(
        text(
            f"SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL statement_timeout = {_LONGEST_SEARCH_MS}"
        )
    )
    type_name = f"{plan.element}({{dimensions}})"
    search = target.sql(
        f"SELECT {{ids}} FROM {{table}} "
        f"ORDER BY {{column}}::{type_name} {OPERATORS[plan.metric]} CAST(:vector AS {type_name}) LIMIT 20",
        column=column,
        dimensions=plan.dimensions,
    )
    for vector in sample_vectors(connection, target, [column], _SEARCHES).vectors[column]:
        connection.execute(search, {"vector": str(vector.tolist())}).all()
