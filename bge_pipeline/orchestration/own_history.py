"""Whose history Dagster's records are: of one table of one database, and never shown or continued as another's."""

import json
from contextlib import suppress
from dataclasses import asdict

import dagster as dg

from bge_pipeline.database.identity import TableIdentity, identity_of
from bge_pipeline.errors import ConfigurationError, HistoryOfAnotherTable
from bge_pipeline.orchestration.served import ServedTable, served_tables
from bge_pipeline.phases.migration import Migration

_KEPT = "table_of_history"


def require_own_history(instance: dg.DagsterInstance, table: ServedTable, migration: Migration) -> None:
    """Return if the history is of the configured table; a history that is nobody's yet becomes that table's.

    Raises:
        HistoryOfAnotherTable: names both tables; or the code location serves this one twice, and names both files.
    """
    configured = _configured(migration)
    _require_served_once(instance, table, migration, configured)
    if foreign := _foreign(instance, table, configured):
        raise HistoryOfAnotherTable(
            told_foreign(foreign, configured),
            state="no row and no column was changed in either table",
            next_step="give the table of the settings a history of its own: DAGSTER_DATABASE_URL with an empty database, or "
            "another BGE_PIPELINE_HOME, and start again. If it is the same table in another place, "
            f"launch {table.called('adopt_table_job')}",
        )
    if _kept(instance, table) is None:
        _keep(instance, table, configured)


def adopt(instance: dg.DagsterInstance, table: ServedTable, migration: Migration) -> TableIdentity:
    """Say that the history is of the configured table from now on; returns that table."""
    configured = _configured(migration)
    _keep(instance, table, configured)
    return configured


def foreign_table(
    instance: dg.DagsterInstance, table: ServedTable, migration: Migration
) -> tuple[TableIdentity, TableIdentity] | None:
    """The table of the history and the configured one, where these are two."""
    configured = _configured(migration)
    foreign = _foreign(instance, table, configured)
    return (foreign, configured) if foreign is not None else None


def told_foreign(history: TableIdentity, configured: TableIdentity) -> str:
    """That they are two, in words."""
    return f"Dagster's history and partitions here are those of {history}, and the settings name {configured}"


def _require_served_once(
    instance: dg.DagsterInstance, table: ServedTable, migration: Migration, configured: TableIdentity
) -> None:
    """Refuse a column that another env file names too, by whatever URL: it was noted as that one's first."""
    if table.env_file is None:
        return
    for other in served_tables():
        if other.name == table.name or (kept := _kept(instance, other)) is None or not kept.is_same_as(configured):
            continue
        with suppress(ConfigurationError):
            if other.settings().target_embedding_column == migration.settings.target_embedding_column:
                raise HistoryOfAnotherTable(
                    f"{table.env_file} and {other.env_file} both name {configured}, whose history is kept under {other.name!r}",
                    state="nothing was changed",
                    next_step="take one of the two out of BGE_PIPELINE_TABLES, and reload the code location",
                )


def _foreign(instance: dg.DagsterInstance, table: ServedTable, configured: TableIdentity) -> TableIdentity | None:
    kept = _kept(instance, table)
    return None if kept is None or kept.is_same_as(configured) else kept


def _configured(migration: Migration) -> TableIdentity:
    with migration.database.autocommit() as connection:
        return identity_of(connection, migration.target)


def _kept(instance: dg.DagsterInstance, table: ServedTable) -> TableIdentity | None:
    key = table.kept_as(_KEPT)
    kept = instance.daemon_cursor_storage.get_cursor_values({key}).get(key)
    return TableIdentity(**json.loads(kept)) if kept is not None else None


def _keep(instance: dg.DagsterInstance, table: ServedTable, identity: TableIdentity) -> None:
    instance.daemon_cursor_storage.set_cursor_values({table.kept_as(_KEPT): json.dumps(asdict(identity))})
