"""What an application finds that sets no search effort: recall of the index at the settings that its role has on the server."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from bge_pipeline.database.role_settings import RoleSetting, read_role_setting, role_setting_statement
from bge_pipeline.quality.index_recall import index_recall
from bge_pipeline.quality.recall_queries import RecallQueries
from bge_pipeline.search.column import SearchedColumn, configured_scan, read_column
from bge_pipeline.search.scan import Session
from bge_pipeline.settings import Settings


@dataclass(frozen=True)
class ServerSearch:
    """Recall of plain SQL.

    Attributes:
        recall: of the new column's index with `value`.
        setting: `ivfflat.probes` or `hnsw.ef_search`.
        value: what it is for new sessions of `role`.
        role: the application's.
        statement: gives new sessions what `Retriever` sets for each search.
        recall_before: of the old column's index at the server's settings; None where that was not asked.
    """

    recall: float
    setting: str
    value: int
    role: str
    statement: str
    recall_before: float | None = None

    def summary(self) -> str:
        """The measurement in words."""
        before = f", before {self.recall_before:.3f}" if self.recall_before is not None else ""
        return (
            f"share of the nearest neighbours that plain SQL of role {self.role} finds with {self.setting} = {self.value}, as "
            f"the server has it{before}"
        )


@dataclass(frozen=True)
class MissingEffort:
    """That a role's sessions search less thoroughly than the index needs, and the statement that mends it."""

    setting: RoleSetting
    wanted: int
    statement: str


def missing_effort(connection: Connection, settings: Settings, column: str) -> MissingEffort | None:
    """How the server would have to be set for plain SQL to search `column` as `Retriever` does; None where it is."""
    searched = read_column(connection, settings, column)
    setting = _setting(connection, settings, searched)
    if setting is None:
        return None
    wanted = int(configured_scan(searched, settings, candidates=0)[setting.name])
    if setting.value >= wanted:
        return None
    statement = role_setting_statement(connection, setting, wanted, settings.application_role)
    return MissingEffort(setting, wanted, statement)


def measure_recalls(
    connection: Connection,
    settings: Settings,
    new: str,
    queries: RecallQueries,
    old: str | None = None,
    old_queries: RecallQueries | None = None,
) -> tuple[float, ServerSearch | None]:
    """Recall of the new column's index as `Retriever` searches it, and as the server is set for the application.

    Args:
        connection: an autocommit connection.
        settings: name the table, and with APPLICATION_ROLE the application.
        new: the new column.
        queries: what its index is asked for.
        old, old_queries: the same of the old column, if its vectors can be searched; asked only where the new column's
            recall at the server's settings is too low.
    """
    searched = read_column(connection, settings, new)
    setting = _setting(connection, settings, searched)
    if setting is None or settings.server_search_effort == "ignore":
        return index_recall(connection, settings, searched, queries), None
    on_server = recall = index_recall(connection, settings, searched, queries, {setting.name: setting.value})
    wanted = configured_scan(searched, settings, queries.k)[setting.name]
    # What Retriever sets besides makes a search go on where it found too few rows, so that it finds no less.
    if wanted != setting.value or on_server < settings.quality_min_ann_recall:
        recall = index_recall(connection, settings, searched, queries)
    missing = missing_effort(connection, settings, new)
    before = None
    if on_server < settings.quality_min_ann_recall and old is not None and old_queries is not None:
        before = _recall_of_old(connection, settings, old, old_queries)
    statement = missing.statement if missing is not None else ""
    return recall, ServerSearch(on_server, setting.name, setting.value, setting.role, statement, before)


def _recall_of_old(connection: Connection, settings: Settings, column: str, queries: RecallQueries) -> float:
    searched = read_column(connection, settings, column)
    setting = _setting(connection, settings, searched)
    session: Session | None = {setting.name: setting.value} if setting is not None else None
    return index_recall(connection, settings, searched, queries, session)


def _setting(connection: Connection, settings: Settings, searched: SearchedColumn) -> RoleSetting | None:
    if searched.effort is None:
        return None
    return read_role_setting(connection, searched.target, searched.effort, settings.application_role)
