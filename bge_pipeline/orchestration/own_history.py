"""Whose history Dagster's records are: of one table of one database, and never shown or continued as another's."""

import json
from dataclasses import asdict

import dagster as dg

from bge_pipeline.database.identity import TableIdentity, identity_of
from bge_pipeline.errors import HistoryOfAnotherTable
from bge_pipeline.phases.migration import Migration

_KEPT = "bge_pipeline/table_of_history"


def require_own_history(instance: dg.DagsterInstance, migration: Migration) -> None:
    """Return if the history is of the configured table; a history that is nobody's yet becomes that table's.

    Raises:
        HistoryOfAnotherTable: names both tables.
    """
    configured = _configured(migration)
    if foreign := _foreign(instance, configured):
        raise HistoryOfAnotherTable(
            told_foreign(foreign, configured),
            state="nothing was changed in either table",
            next_step="give the table of the settings a history of its own: DAGSTER_DATABASE_URL with an empty database, or "
            "another BGE_PIPELINE_HOME, and start again. If it is the same table in another place, launch adopt_table_job",
        )
    if _kept(instance) is None:
        _keep(instance, configured)


def adopt(instance: dg.DagsterInstance, migration: Migration) -> TableIdentity:
    """Say that the history is of the configured table from now on; returns that table."""
    configured = _configured(migration)
    _keep(instance, configured)
    return configured


def foreign_table(instance: dg.DagsterInstance, migration: Migration) -> tuple[TableIdentity, TableIdentity] | None:
    """The table of the history and the configured one, where these are two."""
    configured = _configured(migration)
    foreign = _foreign(instance, configured)
    return (foreign, configured) if foreign is not None else None


def told_foreign(history: TableIdentity, configured: TableIdentity) -> str:
    """That they are two, in words."""
    return f"Dagster's history and partitions here are those of {history}, and the settings name {configured}"


def _foreign(instance: dg.DagsterInstance, configured: TableIdentity) -> TableIdentity | None:
    kept = _kept(instance)
    return None if kept is None or kept.is_same_as(configured) else kept


def _configured(migration: Migration) -> TableIdentity:
    with migration.database.autocommit() as connection:
        return identity_of(connection, migration.target)


def _kept(instance: dg.DagsterInstance) -> TableIdentity | None:
    kept = instance.daemon_cursor_storage.get_cursor_values({_KEPT}).get(_KEPT)
    return TableIdentity(**json.loads(kept)) if kept is not None else None


def _keep(instance: dg.DagsterInstance, identity: TableIdentity) -> None:
    instance.daemon_cursor_storage.set_cursor_values({_KEPT: json.dumps(asdict(identity))})
