"""SegmentsDatabase: sources and segments of a transcript application, on connections that recover by themselves."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from psycopg2.extras import execute_values
from sqlalchemy import create_engine

from bge_pipeline.compat.connections import Connection, ThreadConnections
from bge_pipeline.compat.segment_rows import Row, Segment, adapted, read_columns, segment_rows
from bge_pipeline.database.connection import chosen_url, normalise_url
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import ConfigurationError, TargetTableError
from bge_pipeline.settings import Settings, settings_from_env

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import Session

_KEY = ("video_id", "start_sec", "end_sec")
_PAGE_ROWS = 500


class SegmentsDatabase:
    """The tables `sources` and `segments`. Thread-safe: every thread has a connection of its own.

    A connection that was dropped is replaced by the next call, one in a failed transaction is rolled back. A call that
    fails rolls back and raises what PostgreSQL said (`psycopg2.Error`); none answers with nothing instead.

    Args:
        db_url: URL of the database; by default DATABASE_URL, or the embedded PostgreSQL.
        settings: name the table and its columns (TARGET_*); by default those from the environment.
    """

    def __init__(self, db_url: str | None = None, settings: Settings | None = None) -> None:
        settings = settings or settings_from_env()
        self._url = normalise_url(db_url if db_url is not None else chosen_url(settings))
        self._target = TargetTable.from_settings(settings)
        if not self._target.row_text.is_column:
            raise ConfigurationError(
                "SegmentsDatabase writes texts into a column: expected TARGET_TEXT_COLUMN, got an expression (TARGET_TEXT)",
                next_step="write rows with SQL of your own, and let bge-pipeline embed what is pending",
            )
        self._names = {
            "segments": sql.Identifier(self._target.schema, self._target.table),
            "sources": sql.Identifier(self._target.schema, "sources"),
            "text": sql.Identifier(self._target.text_column),
            "embedding": sql.Identifier(self._target.embedding_column),
        }
        self._connections = ThreadConnections(self._url)
        self._engine: Engine | None = None
        self._engine_process = 0
        self._engine_lock = threading.Lock()

    def get_connection(self) -> Connection:
        """This thread's connection, ready for the next statement.

        Used in `with`, it commits at the end of the block, or rolls back if the block raises; it stays open. The other
        methods are transactions of their own and refuse to run inside such a block.

        Raises:
            psycopg2.OperationalError: the server cannot be reached.
        """
        return self._connections.get()

    @contextmanager
    def session_scope(self) -> Iterator[Session]:
        """A SQLAlchemy session that commits at the end of the block, or rolls back if the block raises.

        Its connections are pooled, apart from those of `get_connection`, and tested before each use.
        """
        from sqlalchemy.orm import Session

        with Session(self._pool()) as session, session.begin():
            yield session

    def check_video_exists(self, video_id: str) -> tuple[int | None, int]:
        """Id of the video's source, None if there is none, and the number of its segments."""
        statement = (
            "SELECT (SELECT id FROM {sources} WHERE video_id = %(video)s), "
            "(SELECT count(*) FROM {segments} WHERE video_id = %(video)s)"
        )
        ((source_id, segments),) = self._query(statement, {"video": video_id})
        return source_id, segments

    def get_cached_voice_embeddings(
        self, video_id: str, max_age_days: float | None = None
    ) -> dict[tuple[float, float], list[float]]:
        """Voice vectors that are stored for a video, by start and end in seconds.

        Args:
            max_age_days: leave out segments that were made longer ago; None: any age will do.
        """
        statement = (
            "SELECT start_sec, end_sec, voice_embedding FROM {segments} "
            "WHERE video_id = %(video)s AND voice_embedding IS NOT NULL "
            "AND (%(days)s IS NULL OR created_at > now() - %(days)s * interval '1 day') ORDER BY start_sec, end_sec"
        )
        rows = self._query(statement, {"video": video_id, "days": max_age_days})
        return {(start, end): vector for start, end, vector in rows}

    def upsert_source(self, video_id: str, title: str, **columns: Any) -> int:
        """Add a video or change its title; returns the id of its source.

        Args:
            columns: values for further columns of the table `sources`; None leaves a value as it is.
        """
        values = {"video_id": video_id, "title": title}
        values |= {name: adapted(value) for name, value in columns.items() if value is not None}
        statement = (
            "INSERT INTO {sources} ({columns}) VALUES ({given}) "
            "ON CONFLICT (video_id) DO UPDATE SET {changes} RETURNING id"
        )
        ((source_id,),) = self._query(
            statement,
            list(values.values()),
            columns=_list(values),
            given=sql.SQL(", ").join([sql.Placeholder()] * len(values)),
            changes=_changes(values, {}),
        )
        return int(source_id)

    def batch_insert_segments(self, segments: Sequence[Segment], video_id: str) -> int:
        """Write segments of a video in one transaction; returns how many rows were added or changed.

        A segment that is there already, by (video_id, start_sec, end_sec), is changed: a value that is not given stays
        as it is, except that a new text without a new embedding clears the embedding of the old text. Of two such
        segments in one call the last counts.

        Args:
            segments: each with `text`, `start_sec` and `end_sec` (or `start` and `end`) and, where it has them,
                `embedding` (of the dimensions of the column), `voice_embedding`, `speaker_label`, `metadata` and any
                other column of the table, by its name. What is no column of the table is left alone.

        Raises:
            EmbeddingSpaceMismatch: an embedding is not of the column's dimensions; nothing was written.
            TargetTableError: the video has no source yet, or a segment lacks its text or times.
        """
        if not segments:
            return 0
        with self.get_connection() as connection, connection.cursor() as cursor:
            cursor.execute(self._compose("SELECT id FROM {sources} WHERE video_id = %s"), [video_id])
            source = cursor.fetchone()
            if source is None:
                raise TargetTableError(
                    f"there is no source with video_id {video_id!r}: expected one before its segments",
                    state="nothing was written",
                    next_step=f"upsert_source({video_id!r}, title)",
                )
            rows = segment_rows(segments, self._target, read_columns(cursor, self._target))
            for names, group in _by_columns(rows).items():
                self._insert(cursor, names, [(source[0], video_id, *row.values()) for row in group])
        return len(rows)

    def close(self) -> None:
        """Close the connections of all threads; a later call opens a new one."""
        self._connections.close()
        with self._engine_lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose(close=self._engine_process == os.getpid())

    def __enter__(self) -> SegmentsDatabase:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _query(
        self, statement: str, values: Mapping[str, Any] | Sequence[Any], **parts: sql.Composable
    ) -> list[tuple[Any, ...]]:
        with self.get_connection() as connection, connection.cursor() as cursor:
            cursor.execute(self._compose(statement, **parts), values)
            return list(cursor.fetchall())

    def _insert(self, cursor: Any, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        every = ("source_id", "video_id", *names)
        kept: dict[str, sql.Composable] = {}
        if self._target.embedding_column not in names:
            kept[self._target.embedding_column] = self._compose(
                "CASE WHEN old.{text} IS NOT DISTINCT FROM EXCLUDED.{text} THEN old.{embedding} END"
            )
        statement = self._compose(
            "INSERT INTO {segments} AS old ({columns}) VALUES %s "
            "ON CONFLICT (video_id, start_sec, end_sec) DO UPDATE SET {changes}",
            columns=_list(every),
            changes=_changes([name for name in every if name not in _KEY], kept),
        )
        execute_values(cursor, statement, rows, page_size=_PAGE_ROWS)

    def _compose(self, statement: str, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(statement).format(**(self._names | parts))

    def _pool(self) -> Engine:
        with self._engine_lock:
            if self._engine is None or self._engine_process != os.getpid():  # a parent's sockets are the parent's
                self._engine, self._engine_process = create_engine(self._url, pool_pre_ping=True), os.getpid()
            return self._engine


def _by_columns(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows that fill the same columns together."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return groups


def _list(names: Collection[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _changes(names: Collection[str], kept: dict[str, sql.Composable]) -> sql.Composed:
    """The SET list of ON CONFLICT: the new value of each column, and for `kept` what is said there."""
    values = {name: sql.SQL("EXCLUDED.{}").format(sql.Identifier(name)) for name in names} | kept
    return sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in values.items())
