"""SQL text with quoted identifiers: the one place where a name becomes part of a statement."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from sqlalchemy import Dialect, TextClause, bindparam, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

_ESCAPED_COLON = re.compile(r"\\(:[\w$]*)(?![:\w$])")
MAX_IDENTIFIER_BYTES = 63
"""PostgreSQL's NAMEDATALEN - 1."""


def quote(*names: str) -> str:
    """A quoted, dot-separated identifier: `quote("public", "Order Notes")` is `"public"."Order Notes"`.

    By PostgreSQL's rule, as SQLAlchemy's own quoting doubles percent signs for the driver a step too early.
    """
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


class Written(str):
    """SQL that stands in a statement as it is, colons included, where others are identifiers."""

    __slots__ = ()


def sql(template: str, /, **identifiers: str | tuple[str, ...] | int) -> TextClause:
    """A statement in which `{name}` stands for an identifier and `:name` for a value.

    Identifiers are quoted; a tuple is a qualified name; an int (a type modifier) and what is `Written` stand as they are.
    """
    parts = {}
    for key, value in identifiers.items():
        if isinstance(value, int):
            parts[key] = str(value)
        elif isinstance(value, Written):
            parts[key] = value.replace(":", "\\:")
        else:
            quoted = quote(*value) if isinstance(value, tuple) else quote(value)
            parts[key] = quoted.replace(":", "\\:")
    return text(template.format(**parts))


class SqlString(UserDefinedType[str]):
    """A string that can be written into a statement for a person to review (standard_conforming_strings on)."""

    cache_ok = True

    def literal_processor(self, dialect: Dialect) -> Callable[[str], str]:  # noqa: ARG002
        """Quote a value as a string constant, so that `text` does not take its `\\:` for an escaped colon."""
        return lambda value: "'" + _ESCAPED_COLON.sub(r"\\\\\1", value.replace("'", "''")) + "'"


def with_values(statement: TextClause, **values: str) -> TextClause:
    """The statement with its `:name` strings bound, so that it can be executed or rendered."""
    return statement.bindparams(*(bindparam(name, value, SqlString()) for name, value in values.items()))


def render(statement: TextClause) -> str:
    """The statement as a person would type it, values included; for `alembic --sql` and for messages."""
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


def shortened(name: str) -> str:
    """`name` if PostgreSQL takes it whole, otherwise its beginning and a digest, so that it stays unique."""
    encoded = name.encode()
    if len(encoded) <= MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    head = encoded[: MAX_IDENTIFIER_BYTES - 9].decode(errors="ignore")
    return f"{head}_{digest}"
