"""Whether the text that the settings name can be watched by a trigger and indexed, asked before anything is changed."""

from __future__ import annotations

from bge_pipeline.database.catalog import TableDescription
from bge_pipeline.database.connection import Database
from bge_pipeline.database.pooler import session_obstacle
from bge_pipeline.database.read_only import read_only_fault
from bge_pipeline.database.text_columns import find_text_columns
from bge_pipeline.errors import BgePipelineError


def text_obstacle(database: Database, table: TableDescription) -> BgePipelineError | None:
    """What expand would refuse the text for; None where it would not, and where the server takes no temporary table."""
    if table.text_is_plain_column or session_obstacle(database) is not None:
        return None
    try:
        with database.transaction() as connection:
            if read_only_fault(connection) is None:
                find_text_columns(connection, table.target)
    except BgePipelineError as refusal:
        return refusal
    return None
