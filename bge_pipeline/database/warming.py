"""Warming an index: reading it into memory, so that the first searches are as fast as those after them."""

from __future__ import annotations

import logging

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import IndexPlan
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable

logger = logging.getLogger(__name__)

_SEARCHES = 20
_MAY_PREWARM = """
SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = 'pg_prewarm' AND has_function_privilege(p.oid, 'EXECUTE')
WHERE e.extname = 'pg_prewarm'
"""


def warm(database: Database, target: TargetTable, column: str, index: str, plan: IndexPlan) -> None:
    """Read the vector index: by pg_prewarm where the extension is there, else by searches for some of the column's vectors.

    What goes wrong here is logged: a cold index is slow and right.
    """
    try:
        with database.transaction() as connection:
            schema = connection.execute(text(_MAY_PREWARM)).scalars().first()
            if schema is not None:
                prewarm = target.sql(
                    "SELECT {prewarm}(c.oid) FROM pg_class c WHERE c.relkind = 'i' AND c.oid IN (SELECT relid FROM "
                    "pg_partition_tree(CAST(:index AS regclass)) UNION SELECT CAST(:index AS regclass))",
                    prewarm=(schema, "pg_prewarm"),
                )
                connection.execute(prewarm, {"index": quote(target.schema, index)})
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            sample = target.sql(
                "SELECT {column}::text FROM {table} TABLESAMPLE SYSTEM (1) WHERE {column} IS NOT NULL LIMIT :searches",
                column=column,
            )
            type_name = f"{plan.element}({{dimensions}})"
            search = target.sql(
                f"SELECT {{ids}} FROM {{table}} ORDER BY {{column}}::{type_name} <=> CAST(:vector AS {type_name}) LIMIT 20",
                column=column,
                dimensions=plan.dimensions,
            )
            for vector in connection.execute(sample, {"searches": _SEARCHES}).scalars().all():
                connection.execute(search, {"vector": vector}).all()
    except DBAPIError as error:
        logger.info("index %s was not warmed: %s", index, str(error.orig).strip())
