"""Partitions of the backfill: id ranges of about PARTITION_ROWS rows, kept in Dagster's instance. No SQL."""

import hashlib
import re
from collections.abc import Mapping, Sequence

import dagster as dg

from bge_pipeline.database.ids import OTHERS, UUIDS, Id, IdRange
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table

id_ranges = dg.DynamicPartitionsDefinition(name="id_ranges")

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
_HALF_AN_ESCAPE = re.compile("%.?$")


def known_keys(instance: dg.DagsterInstance) -> Sequence[str]:
    """The keys of every partition, in the order of their ids."""
    return instance.get_dynamic_partitions(str(id_ranges.name))


def recut(instance: dg.DagsterInstance, migration: Migration) -> list[str]:
    """Replace the partitions by those of the table as it is now; returns their keys."""
    ranges = _cut(migration)
    keys = _named(instance, ranges, 1, digits=max(_FEWEST_DIGITS, len(str(_ROOM_TO_GROW * len(ranges)))))
    for key in known_keys(instance):
        instance.delete_dynamic_partition(str(id_ranges.name), key)
    instance.add_dynamic_partitions(str(id_ranges.name), keys)
    return keys


def new_full_ranges(instance: dg.DagsterInstance, migration: Migration) -> list[str]:
    """Keys for what the table has grown by above the last partition, in full ranges only.

    The last range that a cut gives is still filling up; its rows are embedded without a partition.
    """
    keys = known_keys(instance)
    if not keys:
        return []
    above = range_of(instance, keys[-1]).upper
    return _named(instance, _cut(migration, above=above)[:-1], len(keys) + 1, digits=_digits_of(keys[-1]))


def add(instance: dg.DagsterInstance, keys: Sequence[str]) -> None:
    """Add partitions behind those that are there."""
    instance.add_dynamic_partitions(str(id_ranges.name), keys)


def range_of(instance: dg.DagsterInstance, key: str) -> IdRange:
    """The ids that a partition stands for.

    Raises:
        BgePipelineError: the key is not one of ours.
    """
    if key.count("~") == _SEPARATORS_OF_A_CUT_KEY:
        kept = _kept_as(key)
        key = instance.daemon_cursor_storage.get_cursor_values({kept}).get(kept, key)
    return IdRange.from_key(key)


def targeted_keys(tags: Mapping[str, str], instance: dg.DagsterInstance) -> list[str]:
    """The partitions that a run with these tags is about; none for a run without a partition."""
    if PARTITION_TAG in tags:
        return [tags[PARTITION_TAG]]
    if RANGE_START_TAG not in tags:
        return []
    keys = known_keys(instance)
    try:
        first, last = keys.index(tags[RANGE_START_TAG]), keys.index(tags[RANGE_END_TAG])
    except ValueError:
        raise BgePipelineError(
            f"expected two partitions that exist, got {tags[RANGE_START_TAG]!r} and {tags[RANGE_END_TAG]!r}",
            next_step="materialize schema_with_384_column, which cuts the partitions",
        ) from None
    return list(keys[first : last + 1])


def targeted_range(tags: Mapping[str, str], instance: dg.DagsterInstance) -> IdRange | None:
    """The ids that a run with these tags is about; None for the whole table."""
    keys = targeted_keys(tags, instance)
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
        if id_range.kind is UUIDS or (len(key) > _LONGEST_KEY and id_range.kind.includes_upper):
            whole_key, key = key, _cut_key(f"{number:0{digits}d}", id_range, key)
            whole[_kept_as(key)] = whole_key
        keys.append(key)
    if whole:
        instance.daemon_cursor_storage.set_cursor_values(whole)
    return keys


def _cut_key(number: str, id_range: IdRange, key: str) -> str:
    """The number, the beginnings of the bounds, and a digest: another cut of the table has another."""
    length = _SHOWN_OF_A_UUID if id_range.kind is UUIDS else _SHOWN_OF_A_BOUND
    shown = [
        "" if bound is None else _HALF_AN_ESCAPE.sub("", OTHERS.readable(str(bound))[:length])
        for bound in (id_range.lower, id_range.upper)
    ]
    return "~".join([number, *shown, hashlib.sha256(key.encode()).hexdigest()[:8]])


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
