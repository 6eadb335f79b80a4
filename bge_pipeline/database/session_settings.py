"""The run-time parameters that our SQL counts on, each with its reason, and the limits of a session that only looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text


@dataclass(frozen=True)
class FixedSetting:
    """A run-time parameter whose value our SQL counts on, whatever role, database and server say.

    Attributes:
        name, value: as in `SET`.
        reason: what goes wrong otherwise.
        seen_by_triggers: whether a trigger of the application can tell; the statement that runs those keeps the role's own.
    """

    name: str
    value: str
    reason: str
    seen_by_triggers: bool = False


STRINGS = FixedSetting(
    "standard_conforming_strings", "on", "the pattern '\\S' would look for an S, and rows pass for without text", True
)
FIXED_SETTINGS = (
    STRINGS,
    FixedSetting("backslash_quote", "safe_encoding", "the driver and the server must agree where a string ends", True),
    FixedSetting("transform_null_equals", "off", "`= NULL` is never true in our conditions", True),
    FixedSetting("quote_all_identifiers", "off", "definitions of indexes are read, and built again by them", True),
    FixedSetting("DateStyle", "ISO", "points in time are read as text", True),
    FixedSetting("IntervalStyle", "postgres", "lengths of time are read as text", True),
    FixedSetting("bytea_output", "hex", "bytes are read as text", True),
    FixedSetting("extra_float_digits", "1", "vectors are read as text, and fewer digits make them others", True),
    FixedSetting(
        "row_security", "on", "a role from which rows are hidden is refused by name, and search shows its rows"
    ),
    FixedSetting(
        "default_transaction_isolation", "read committed", "a batch meets rows that changed as it was written"
    ),
    FixedSetting("jit", "off", "planner costs are pushed to extremes, and each batch would be compiled for them"),
    # As pg_dump does: a count of every row or an index build takes what it takes.
    FixedSetting("statement_timeout", "0", "index builds and counts take hours"),
    FixedSetting(
        "lock_timeout", "0", "a build beside live traffic waits for older transactions; locks.py bounds the rest"
    ),
    FixedSetting("idle_in_transaction_session_timeout", "0", "a batch may wait for its vectors"),
    FixedSetting("idle_session_timeout", "0", "connections wait in the pool while a model computes"),
    FixedSetting("transaction_timeout", "0", "it ends the connection in the middle of an index build"),
)
"""`client_encoding` is set by the driver. Left as they are, since our SQL means the same under each: TimeZone (what is
read carries its offset), session_replication_role (our trigger fires ALWAYS), plan_cache_mode (nothing is prepared),
default_transaction_read_only (whoever set it meant it)."""


@dataclass(frozen=True)
class Limits:
    """How many seconds a session waits, at the most, for what others can hold up without end.

    Attributes:
        connect: for the server to take a connection.
        lock: for any lock.
        statement: for the end of a statement.
    """

    connect: int
    lock: int
    statement: int

    def of_session(self) -> dict[str, str]:
        """The run-time parameters, by name."""
        return {"lock_timeout": f"{self.lock}s", "statement_timeout": f"{self.statement}s"}


LOOK = Limits(connect=10, lock=3, statement=45)
"""Of a look that is repeated every half minute by a process with few threads. Dagster ends its wait for a sensor after 60 s, and
the thread behind it would go on."""

LIMITS = ("statement_timeout", "lock_timeout")
"""What bounds a wait of the server's. A search of the application leaves both as they are."""

SEEN_BY_TRIGGERS = ("search_path", *(setting.name for setting in FIXED_SETTINGS if setting.seen_by_triggers))
"""The settings that `Sessions.roles_own_settings` takes away."""
_AS_IT_IS = "SELECT pg_catalog.current_setting(name) FROM pg_catalog.unnest(CAST(:names AS pg_catalog.text[])) name"
_PUT_BACK = """
SELECT pg_catalog.set_config(name, value, true) FROM ROWS FROM (
  pg_catalog.unnest(CAST(:names AS pg_catalog.text[])), pg_catalog.unnest(CAST(:values AS pg_catalog.text[]))) given (name, value)
"""


@contextmanager
def settings_put_back(connection: Connection) -> Iterator[None]:
    """Let the role's own settings last for no longer than the block, in a transaction that goes on with ours."""
    names = list(SEEN_BY_TRIGGERS)
    values = connection.execute(text(_AS_IT_IS), {"names": names}).scalars().all()
    yield
    connection.execute(text(_PUT_BACK), {"names": names, "values": values})


def unbounded_statements() -> list[TextClause]:
    """The statements by which a session for review may take its time, as ours do outside of short transactions."""
    return [text(f"SET {setting.name} = '{setting.value}'") for setting in FIXED_SETTINGS if setting.name in LIMITS]
