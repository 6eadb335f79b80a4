"""COPY, and its binary format from NumPy arrays, without a Python loop over rows.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"; the vector's own layout is
`vector_send` in pgvector: dim int16, unused int16, then big-endian float32s.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psycopg2
from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.ids import Id, IdKind
from bge_pipeline.database.row_key import numbered
from bge_pipeline.database.session import sent_along

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_FIELDS_BEHIND_THE_ID = 3


def run_copy(connection: Connection, statement: str, stream: Any) -> None:
    """COPY from or to a file-like object, with errors as those of every other statement.

    SQLAlchemy has no COPY, and so does not see its errors.

    Raises:
        DBAPIError: the server refused it, or the connection broke.
    """
    raw = cast("RawConnection", connection.connection.dbapi_connection)
    try:
        with raw.cursor() as cursor:
            cursor.copy_expert(sent_along(connection) + statement, stream)
    except psycopg2.Error as error:
        if raw.closed:
            connection.invalidate()
        raise DBAPIError.instance(
            statement, None, error, psycopg2.Error, connection_invalidated=raw.closed != 0
        ) from error


def staged_vectors(
    kind: IdKind,
    ids: Sequence[Id],
    versions: Sequence[int],
    digests: Sequence[bytes],
    vectors: NDArray[np.float32],
) -> io.BytesIO:
    """Rows `(id, version xid, digest uuid, vector vector)` as a binary COPY stream, an id of several columns in as many fields.

    With ids of one length the whole stream is one array; otherwise each id is put in front of its row of an array.

    Args:
        kind: of the ids.
        ids: n ids.
        versions: n row versions.
        digests: n digests of 16 bytes.
        vectors: float32 (n, dimensions).
    """
    n, dimensions = vectors.shape
    keys = [part.binary(values) for part, values in zip(kind.parts, kind.columns(ids), strict=True)]
    identifier = id_fields(kind)
    rows = np.zeros(
        n,
        dtype=[
            *(identifier or ()),
            ("version_length", ">i4"),
            ("version", ">u4"),
            ("digest_length", ">i4"),
            ("digest", "V16"),
            ("vector_length", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("values", ">f4", (dimensions,)),
        ],
    )
    rows["version_length"] = 4
    rows["version"] = versions
    rows["digest_length"] = 16
    rows["digest"] = np.frombuffer(b"".join(digests), dtype="V16")
    rows["vector_length"] = 4 + 4 * dimensions
    rows["dimensions"] = dimensions
    rows["values"] = vectors
    fields = len(keys) + _FIELDS_BEHIND_THE_ID
    if identifier is not None:
        rows["fields"] = fields
        for name, key in zip(names_of_id_fields(kind), keys, strict=True):
            rows[f"{name}_length"] = rows[name].itemsize
            rows[name] = key
        return io.BytesIO(HEADER + rows.tobytes() + TRAILER)
    size, rest = rows.itemsize, memoryview(rows.tobytes())
    parts: list[bytes | memoryview] = [HEADER]
    for position, identity in enumerate(zip(*map(_as_bytes, keys), strict=True)):
        parts.append(fields.to_bytes(2, "big"))
        for value in identity:
            parts += (len(value).to_bytes(4, "big"), value)
        parts.append(rest[position * size : (position + 1) * size])
    return io.BytesIO(b"".join([*parts, TRAILER]))


def id_fields(kind: IdKind) -> list[tuple[str, str]] | None:
    """What a row begins with, its field count and id, as fields of NumPy; None where ids differ in length."""
    fields = [("fields", ">i2")]
    for name, part in zip(names_of_id_fields(kind), kind.parts, strict=True):
        if part.binary_type is None:
            return None
        fields += [(f"{name}_length", ">i4"), (name, part.binary_type)]
    return fields


def names_of_id_fields(kind: IdKind) -> list[str]:
    """What `id_fields` calls the values of the id's columns."""
    return numbered("id", len(kind.parts))


def _as_bytes(fields: NDArray[Any] | list[bytes]) -> list[bytes]:
    """Each field's bytes, also those of an array."""
    if isinstance(fields, list):
        return fields
    size, data = fields.itemsize, fields.tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def copy_stream(rows: Iterable[Sequence[bytes]]) -> io.BytesIO:
    """Rows of fields, each already in its type's binary form, as a binary COPY stream."""
    parts = [HEADER]
    for row in rows:
        parts.append(len(row).to_bytes(2, "big"))
        for value in row:
            parts += (len(value).to_bytes(4, "big"), value)
    parts.append(TRAILER)
    return io.BytesIO(b"".join(parts))


def vector_fields(vectors: NDArray[np.float32]) -> list[bytes]:
    """Each row of float32 (n, dimensions) in the binary form of a `vector` field."""
    prefix = vectors.shape[1].to_bytes(2, "big") + bytes(2)
    return [prefix + row.tobytes() for row in vectors.astype(">f4")]
