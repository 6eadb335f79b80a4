"""Partitions of the backfill: id ranges of about PARTITION_ROWS rows, kept in Dagster's instance. No SQL."""

import hashlib
import re
from collections.abc import Mapping, Sequence

import dagster as dg

from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import UUIDS, Id, IdKind, readable
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration.names import SCHEMA
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table

PARTITION_TAG = "dagster/partition"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

_LONGEST_KEY = 100
"""Characters. A longer key is cut, and what it stands for kept in the instance: Dagster indexes keys, and PostgreSQL indexes
nothing above 2,704 bytes, which two ids of a few hundred letters exceed."""
_SHOWN_OF_A_BOUND = 30
_SHOWN_OF_A_UUID = 8
_FEWEST_DIGITS = 2
_ROOM_TO_GROW = 2
"""The numbers of keys are padded as far as a table of twice as many partitions needs for them to sort."""
_NUMBER = re.compile(r"\d+")
_SEPARATORS_OF_A_CUT_KEY = 3
_LAST_OF_CUT = "last_of_cut"
_HALF_AN_ESCAPE = re.compile("%.?$")


def known_keys(instance: dg.DagsterInstance, table: ServedTable) -> Sequence[str]:
    """The keys of every partition, in the order of their ids."""
    return instance.get_dynamic_partitions(str(table.partitions.name))


def recut(instance: dg.DagsterInstance, table: ServedTable, migration: Migration) -> list[str]:
    """Replace the partitions by those of the table as it is now; returns their keys."""
    ranges = _cut(migration)
    keys = _named(instance, ranges, 1, digits=max(_FEWEST_DIGITS, len(str(_ROOM_TO_GROW * len(ranges)))))
    for key in known_keys(instance, table):
        instance.delete_dynamic_partition(str(table.partitions.name), key)
    _keep_last_of_cut(instance, table, keys[-1] if keys else "")
    instance.add_dynamic_partitions(str(table.partitions.name), keys)
    return keys


def new_full_ranges(instance: dg.DagsterInstance, table: ServedTable, migration: Migration) -> list[str]:
    """Keys for what the table has grown by above the last partition, in full ranges only.

    The last range that a cut gives is still filling up; its rows are embedded without a partition.
    """
    keys = known_keys(instance, table)
    if not keys:
        return []
    above = range_of(instance, keys[-1]).upper
    return _named(instance, _cut(migration, above=above)[:-1], len(keys) + 1, digits=_digits_of(keys[-1]))


def grown_keys(instance: dg.DagsterInstance, table: ServedTable) -> Sequence[str]:
    """The keys behind those of the cut: what the table has grown by since.

    None in an instance of an earlier version, which `note_cut` ends.
    """
    kept = table.kept_as(_LAST_OF_CUT)
    last = instance.daemon_cursor_storage.get_cursor_values({kept}).get(kept)
    keys = known_keys(instance, table)
    return keys[keys.index(last) + 1 :] if last in keys else []


def note_cut(instance: dg.DagsterInstance, table: ServedTable) -> None:
    """Take the partitions that are there for those of the cut, where an earlier version did not keep which those are."""
    kept = table.kept_as(_LAST_OF_CUT)
    if kept not in instance.daemon_cursor_storage.get_cursor_values({kept}):
        _keep_last_of_cut(instance, table, known_keys(instance, table)[-1])


def _keep_last_of_cut(instance: dg.DagsterInstance, table: ServedTable, key: str) -> None:
    instance.daemon_cursor_storage.set_cursor_values({table.kept_as(_LAST_OF_CUT): key})


def add(instance: dg.DagsterInstance, table: ServedTable, keys: Sequence[str]) -> None:
    """Add partitions behind those that are there."""
    instance.add_dynamic_partitions(str(table.partitions.name), keys)


def require_kept(instance: dg.DagsterInstance, table: ServedTable, keys: Sequence[str]) -> None:
    """Return if a run's partitions are all still there, so that Dagster takes what it has to say about them.

    Raises:
        BgePipelineError: names those that somebody deleted meanwhile.
    """
    known = set(known_keys(instance, table))
    deleted = [key for key in keys if key not in known]
    if deleted:
        raise BgePipelineError(
            f"{', '.join(deleted)}: deleted while a run of {'it' if len(keys) == 1 else 'its range'} was at work",
            state="what was embedded is kept, and Dagster's books do not show it",
            next_step=f"{table.called('backfill_job')} goes on with the partitions that are left; "
            f"{table.called('embed_pending_job')} embeds what is in none of them",
        )


def range_of(instance: dg.DagsterInstance, key: str) -> IdRange:
    """The ids that a partition stands for.

    Raises:
        BgePipelineError: the key is not one of ours.
    """
    if key.count("~") == _SEPARATORS_OF_A_CUT_KEY:
        kept = _kept_as(key)
        key = instance.daemon_cursor_storage.get_cursor_values({kept}).get(kept, key)
    return IdRange.from_key(key)


def targeted_keys(instance: dg.DagsterInstance, table: ServedTable, tags: Mapping[str, str]) -> list[str]:
    """The partitions that a run with these tags is about; none for a run without a partition."""
    if PARTITION_TAG in tags:
        return [tags[PARTITION_TAG]]
    if RANGE_START_TAG not in tags:
        return []
    keys = known_keys(instance, table)
    try:
        first, last = keys.index(tags[RANGE_START_TAG]), keys.index(tags[RANGE_END_TAG])
    except ValueError:
        raise BgePipelineError(
            f"expected two partitions that exist, got {tags[RANGE_START_TAG]!r} and {tags[RANGE_END_TAG]!r}",
            next_step=f"materialize {table.key(SCHEMA).to_user_string()}, which cuts the partitions",
        ) from None
    return list(keys[first : last + 1])


def targeted_range(instance: dg.DagsterInstance, table: ServedTable, tags: Mapping[str, str]) -> IdRange | None:
    """The ids that a run with these tags is about; None for the whole table."""
    keys = targeted_keys(instance, table, tags)
    if not keys:
        return None
    first, last = range_of(instance, keys[0]), range_of(instance, keys[-1])
    return IdRange(first.lower, last.upper, first.kind)


def _digits_of(key: str) -> int:
    """Of the number that a key begins with."""
    number = _NUMBER.match(key)
    return len(number[0]) if number is not None else _FEWEST_DIGITS


def _named(instance: dg.DagsterInstance, ranges: Sequence[IdRange], first: int, *, digits: int) -> list[str]:
    """Keys of the ranges, numbered from `first`."""
    keys, whole = [], {}
    for number, id_range in enumerate(ranges, start=first):
        key = id_range.key(number, digits)
        if UUIDS in id_range.kind.parts or (len(key) > _LONGEST_KEY and id_range.kind.includes_upper):
            whole_key, key = key, _cut_key(f"{number:0{digits}d}", id_range, key)
            whole[_kept_as(key)] = whole_key
        keys.append(key)
    if whole:
        instance.daemon_cursor_storage.set_cursor_values(whole)
    return keys


def _cut_key(number: str, id_range: IdRange, key: str) -> str:
    """The number, the beginnings of the bounds, and a digest: another cut of the table has another."""
    shown = ["" if bound is None else _shown(id_range.kind, bound) for bound in (id_range.lower, id_range.upper)]
    return "~".join([number, *shown, hashlib.sha256(key.encode()).hexdigest()[:8]])


def _shown(kind: IdKind, bound: Id) -> str:
    """The beginning of an id, of each column of the key."""
    parts = []
    for column, (value,) in zip(kind.parts, kind.columns([bound]), strict=True):
        length = _SHOWN_OF_A_UUID if column is UUIDS else _SHOWN_OF_A_BOUND // len(kind.parts)
        parts.append(_HALF_AN_ESCAPE.sub("", readable(value)[:length]))
    return "_".join(parts)


def _kept_as(key: str) -> str:
    return f"bge_pipeline/id_range/{key}"


def _cut(migration: Migration, *, above: Id | None = None) -> list[IdRange]:
    state = require_table(migration)
    with migration.database.autocommit() as connection:
        return cut_ranges(
            connection,
            migration.target,
            state.table.id_kind,
            migration.settings.partition_rows,
            above=above,
        )
