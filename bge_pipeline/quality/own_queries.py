"""The user's own questions: from a file, from the application's log of queries, or from EVAL_QUERIES."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, text

from bge_pipeline.database.sql import quote
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.quality.judgements import load_judged_queries
from bge_pipeline.settings import QualitySettings

_LATEST = 10_000
"""Lines of the log that are looked at, from its beginning: a log may be large, and nobody indexed it for this."""


def own_queries(connection: Connection, settings: QualitySettings, count: int) -> list[str]:
    """At most `count` different questions, the same ones for the same sources; none where no source is set.

    Raises:
        ConfigurationError: COMPARE_QUERIES or EVAL_QUERIES cannot be read, or QUERY_LOG names no column.
    """
    if settings.compare_queries is not None:
        return read_questions(settings.compare_queries)[:count]
    if settings.query_log is not None:
        return _logged(connection, settings.query_log, count)
    if settings.eval_queries is not None:
        return list(load_judged_queries(settings.eval_queries).queries.values())[:count]
    return []


def read_questions(path: Path) -> list[str]:
    """The questions of a file: one a line, or JSON Lines as EVAL_QUERIES has them.

    Raises:
        ConfigurationError: the file cannot be read, or holds no question.
    """
    if path.suffix in (".jsonl", ".json"):
        return list(load_judged_queries(path).queries.values())
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` knows ends of lines that JSON does not
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"expected a readable file of questions, got {path}: {error}") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ConfigurationError(f"{path} holds no question", next_step="write one question a line")
    return found


def _logged(connection: Connection, column: str, count: int) -> list[str]:
    schema, table, name = column.split(".")
    known = text(
        "SELECT FROM information_schema.columns WHERE table_schema = :schema AND table_name = :table AND column_name = :name"
    )
    if connection.execute(known, {"schema": schema, "table": table, "name": name}).first() is None:
        raise ConfigurationError(
            f"QUERY_LOG: there is no column {column}, or this role may not see it",
            next_step="name it as schema.table.column, and GRANT SELECT on the table",
        )
    asked = f"btrim({quote(name)}::text)"
    statement = (
        f"SELECT DISTINCT asked FROM (SELECT {asked} AS asked FROM {quote(schema)}.{quote(table)} LIMIT :lines) l "
        "WHERE asked <> ''"
    )
    ordered = f"SELECT asked FROM ({statement}) d ORDER BY md5(asked) LIMIT :count"
    return list(connection.execute(text(ordered), {"lines": _LATEST, "count": count}).scalars())
