"""SegmentsDatabase: sources and segments of a transcript application, on connections that recover by themselves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import psycopg2
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR
from psycopg2.extensions import connection as PlainConnection  # noqa: N812
from psycopg2.extras import Json, execute_values
from sqlalchemy import create_engine

from bge_pipeline.database.connection import normalise_url
from bge_pipeline.database.embedded import start_embedded_postgres
from bge_pipeline.database.notes import ColumnNote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import EmbeddingSpaceMismatch, TargetTableError
from bge_pipeline.settings import Settings, settings_from_env

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.orm import Session

Segment = Mapping[str, Any] | object
"""A mapping, or an object with attributes, that has `text`, `start_sec` and `end_sec` (or `start` and `end`)."""

_KEY = ("video_id", "start_sec", "end_sec")
_NOT_FOR_SEGMENTS = ("source_id", "video_id", "created_at")
_PAGE_ROWS = 500

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.atttypmod > 0 THEN a.atttypmod END,
       col_description(a.attrelid, a.attnum)
FROM pg_attribute a
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
"""


class Connection(PlainConnection):  # type: ignore[misc]
    """A psycopg2 connection whose `with` block ends with the error that broke it, not with one about rolling it back."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self.closed:
            super().__exit__(kind, error, trace)


class _OfThread(threading.local):
    """A thread's connection, and the process that opened it: a forked one must not talk on its parent's."""

    connection: Connection | None = None
    process = 0


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
        self._url = _url(db_url, settings)
        self._target = TargetTable.from_settings(settings)
        self._names = {
            "segments": sql.Identifier(self._target.schema, self._target.table),
            "sources": sql.Identifier(self._target.schema, "sources"),
            "text": sql.Identifier(self._target.text_column),
            "embedding": sql.Identifier(self._target.embedding_column),
        }
        self._own = _OfThread()
        self._connections: WeakSet[Connection] = WeakSet()
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def get_connection(self) -> Connection:
        """This thread's connection, ready for the next statement.

        Used in `with`, it commits at the end of the block, or rolls back if the block raises; it stays open. The other
        methods are transactions of their own and refuse to run inside such a block.

        Raises:
            psycopg2.OperationalError: the server cannot be reached.
        """
        own = self._own
        if own.connection is not None and own.process == os.getpid() and _is_usable(own.connection):
            return own.connection
        connection: Connection = psycopg2.connect(
            self._url.set(drivername="postgresql").render_as_string(hide_password=False),
            connection_factory=Connection,
            fallback_application_name="bge-pipeline",
        )
        own.connection, own.process = connection, os.getpid()
        with self._lock:
            self._connections.add(connection)
        return connection

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
        values |= {name: _adapted(value) for name, value in columns.items() if value is not None}
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
            columns = self._columns(cursor)
            rows = self._rows(segments, columns)
            for names, group in _by_columns(rows.values()).items():
                self._insert(cursor, names, [(source[0], video_id, *row.values()) for row in group])
        return len(rows)

    def close(self) -> None:
        """Close the connections of all threads; a later call opens a new one."""
        with self._lock:
            connections, engine, self._engine = list(self._connections), self._engine, None
            self._connections.clear()
        for connection in connections:
            connection.close()
        if engine is not None:
            engine.dispose()

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

    def _compose(self, statement: str, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(statement).format(**(self._names | parts))

    def _pool(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = create_engine(self._url, pool_pre_ping=True)
            return self._engine

    def _columns(self, cursor: Any) -> dict[str, _Column]:
        """The columns of the table that a segment may fill."""
        cursor.execute(_COLUMNS, [str(self._target)])
        columns = {row[0]: _Column(*row) for row in cursor.fetchall()}
        for name in (self._target.text_column, self._target.embedding_column):
            if name not in columns:
                raise TargetTableError(f"{self._target} has no column {name!r}", state="nothing was written")
        return {
            name: column for name, column in columns.items() if name not in (*_NOT_FOR_SEGMENTS, self._target.id_column)
        }

    def _rows(
        self, segments: Sequence[Segment], columns: Mapping[str, _Column]
    ) -> dict[tuple[float, float], dict[str, Any]]:
        """What each segment gives for the columns of the table, by start and end."""
        aliases = {
            self._target.text_column: ("text",),
            self._target.embedding_column: ("embedding",),
            "start_sec": ("start_sec", "start"),
            "end_sec": ("end_sec", "end"),
        }
        required = ("start_sec", "end_sec", self._target.text_column)
        rows = {}
        for number, segment in enumerate(segments):
            get = _getter(segment)
            row = {}
            for name, column in columns.items():
                value = next((v for alias in aliases.get(name, (name,)) if (v := get(alias)) is not None), None)
                if value is not None:
                    row[name] = column.adapted(value, number)
            missing = [name for name in required if name not in row]
            if missing:
                raise TargetTableError(
                    f"segment {number}: expected text, start_sec and end_sec, got no {', no '.join(missing)}",
                    state="nothing was written",
                )
            rows[row["start_sec"], row["end_sec"]] = row
        return rows

    def _insert(self, cursor: Any, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        every = ("source_id", "video_id", *names)
        special = {}
        if self._target.embedding_column not in names:
            special = {
                self._target.embedding_column: self._compose(
                    "CASE WHEN old.{text} IS NOT DISTINCT FROM EXCLUDED.{text} THEN old.{embedding} END"
                )
            }
        statement = self._compose(
            "INSERT INTO {segments} AS old ({columns}) VALUES %s "
            "ON CONFLICT (video_id, start_sec, end_sec) DO UPDATE SET {changes}",
            columns=_list(every),
            changes=_changes([name for name in every if name not in _KEY], special),
        )
        execute_values(cursor, statement, rows, page_size=_PAGE_ROWS)


@dataclass(frozen=True)
class _Column:
    """A column that segments fill; `dimensions` for a vector of fixed length."""

    name: str
    kind: str
    dimensions: int | None
    comment: str | None

    def adapted(self, value: Any, segment: int) -> Any:
        """The value as psycopg2 takes it, vectors checked."""
        if self.kind.startswith("jsonb") or self.kind == "json":
            return Json(_plain(value))
        if self.kind.startswith(("vector", "halfvec")):
            return self._vector(value, segment)
        return _adapted(value)

    def _vector(self, value: Any, segment: int) -> str:
        vector = np.asarray(value, dtype=np.float32)
        if vector.ndim != 1 or (self.dimensions is not None and len(vector) != self.dimensions):
            note = ColumnNote.from_comment(self.comment)
            model = note.space.get("model") if note and note.space else None
            raise EmbeddingSpaceMismatch(
                f"column {self.name!r} holds vectors of {self.dimensions} dimensions{f' by {model}' if model else ''}: "
                f"segment {segment} has an embedding of {' x '.join(map(str, vector.shape)) or 'no'} dimensions",
                state="nothing was written",
                next_step="embed with the model of the column (bge-pipeline status names it), or leave `embedding` out: "
                "bge-pipeline embeds what is pending",
            )
        return f"[{','.join(map(str, vector.tolist()))}]"


def _url(db_url: str | None, settings: Settings) -> URL:
    if db_url is not None:
        return normalise_url(db_url)
    if settings.database_url is not None:
        return normalise_url(settings.database_url.get_secret_value())
    return normalise_url(start_embedded_postgres(settings.home / "postgres"))


def _is_usable(connection: Connection) -> bool:
    """Whether the server answers; rolls a failed transaction back. One in progress is left to its owner."""
    if connection.closed:
        return False
    try:
        if connection.get_transaction_status() == TRANSACTION_STATUS_INERROR:
            connection.rollback()
        if connection.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            _ping(connection)
    except (psycopg2.OperationalError, psycopg2.InterfaceError):
        connection.close()
        return False
    return not connection.closed


def _ping(connection: Connection) -> None:
    was = connection.autocommit
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        if not connection.closed:
            connection.autocommit = was


def _getter(segment: Segment) -> Callable[[str], Any]:
    return segment.get if isinstance(segment, Mapping) else lambda name: getattr(segment, name, None)


def _plain(value: Any) -> Any:
    """A Python value in place of an array or a number of NumPy or PyTorch."""
    return value.tolist() if hasattr(value, "tolist") else value


def _adapted(value: Any) -> Any:
    value = _plain(value)
    return Json(value) if isinstance(value, Mapping) else value


def _by_columns(rows: Collection[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows that fill the same columns together."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return groups


def _list(names: Collection[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _changes(names: Collection[str], special: Mapping[str, sql.Composable]) -> sql.Composed:
    """The SET list of ON CONFLICT: the new value of each column, and `special` expressions for others."""
    given = {name: sql.SQL("EXCLUDED.{}").format(sql.Identifier(name)) for name in names}
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in {**given, **special}.items()
    )
