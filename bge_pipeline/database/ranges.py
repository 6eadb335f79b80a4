"""Cutting a table into id ranges that hold about the same number of rows, whatever gaps the ids have."""

from __future__ import annotations

from itertools import pairwise

from sqlalchemy import Connection

from bge_pipeline.database.cut_points import cut_points
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import Id, IdKind
from bge_pipeline.database.target import TargetTable

_NUMBER = "bge_pipeline_number"


def cut_ranges(
    connection: Connection, target: TargetTable, kind: IdKind, rows: int, *, above: Id | None = None
) -> list[IdRange]:
    """Cut the rows that are embedded, or those from the id `above` on, into ranges of `rows` rows, counted in one index scan.

    A large table is not read for it, see `cut_points`: ranges then hold about so many. The last range may hold fewer rows and
    ends with the greatest id, so that later rows begin a range of their own.
    """
    points = cut_points(connection, target, kind, rows) if above is None else None
    if kind.includes_upper:
        ends = points if points is not None else _every(connection, target, kind, rows, 0, above, ">")
        last = _greatest(connection, target, kind, ends[-1] if ends else above)
        uppers = [*ends, *([] if last is None else [last])]
        return [IdRange(lower, upper, kind) for lower, upper in zip([above, *uppers], uppers, strict=False)]
    greatest = _greatest(connection, target, kind, None)
    if greatest is None:
        return []
    if points is not None:
        starts = [_least(connection, target, kind), *points]
    else:
        starts = _every(connection, target, kind, rows, 1, above, ">=")
    if not starts:
        return []
    end = kind.successor(greatest)
    bounds = [starts[0], *(start for start in starts[1:] if start != end), end]
    if above is not None:
        bounds[0] = above
    elif kind.least is not None:
        bounds[0] = kind.least
    elif target.condition is not None:  # a row below may come into the part
        bounds[0] = _least(connection, target, kind)
    return [IdRange(lower, upper, kind) for lower, upper in pairwise(bounds)]


def _every(
    connection: Connection, target: TargetTable, kind: IdKind, rows: int, offset: int, above: Id | None, order: str
) -> list[Id]:
    """Every id of that many, counted from 1, whose number leaves `offset`; of those `order` (> or >=) `above`."""
    where = "WHERE {in_part}" + ("" if above is None else f" AND {{id}} {order} :above")
    statement = target.sql(
        f"SELECT {kind.as_it_travels} FROM (SELECT {{ids}}, row_number() OVER (ORDER BY {{ids}}) AS {_NUMBER} "
        f"FROM {{table}} {where}) numbered WHERE ({_NUMBER} - :offset) % :rows = 0 ORDER BY {_NUMBER}"
    )
    values = {"rows": rows, "offset": offset} | ({} if above is None else {"above": above})
    return [kind.plain(value) for value in connection.execute(statement, values).scalars()]


def _least(connection: Connection, target: TargetTable, kind: IdKind) -> Id:
    """The least id of the table, in the part or not."""
    statement = target.sql(f"SELECT {kind.as_it_travels} FROM {{table}} t ORDER BY {{t_ids}} LIMIT 1")
    return kind.plain(connection.execute(statement).scalar_one())


def _greatest(connection: Connection, target: TargetTable, kind: IdKind, above: Id | None) -> Id | None:
    """The greatest id of the table; None where none is above `above`."""
    where = "WHERE {in_part}" + ("" if above is None else " AND {id} > :above")
    statement = target.sql(
        f"SELECT {kind.as_it_travels} FROM {{table}} t {where} ORDER BY {{t_ids_descending}} LIMIT 1"
    )
    value = connection.execute(statement, {} if above is None else {"above": above}).scalar_one_or_none()
    return None if value is None else kind.plain(value)
