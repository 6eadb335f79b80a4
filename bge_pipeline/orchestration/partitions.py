"""Partitions of the backfill: id ranges of about PARTITION_ROWS rows, kept in Dagster's instance. No SQL."""

from collections.abc import Mapping, Sequence

import dagster as dg

from bge_pipeline.database.connection import Database
from bge_pipeline.database.ids import Id, IdRange
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.database.target import TargetTable
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.state import require_table
from bge_pipeline.settings import Settings

id_ranges = dg.DynamicPartitionsDefinition(name="id_ranges")

PARTITION_TAG = "dagster/partition"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def known_keys(instance: dg.DagsterInstance) -> Sequence[str]:
    """The keys of every partition, in the order of their ids."""
    return instance.get_dynamic_partitions(str(id_ranges.name))


def recut(instance: dg.DagsterInstance, database: Database, settings: Settings) -> list[str]:
    """Replace the partitions by those of the table as it is now; returns their keys."""
    keys = [id_range.key for id_range in _cut(database, settings)]
    for key in known_keys(instance):
        instance.delete_dynamic_partition(str(id_ranges.name), key)
    instance.add_dynamic_partitions(str(id_ranges.name), keys)
    return keys


def new_full_ranges(instance: dg.DagsterInstance, database: Database, settings: Settings) -> list[str]:
    """Keys for what the table has grown by above the last partition, in full ranges only.

    The last range that a cut gives is still filling up; its rows are embedded without a partition.
    """
    keys = known_keys(instance)
    if not keys:
        return []
    above = IdRange.from_key(keys[-1]).upper
    return [id_range.key for id_range in _cut(database, settings, above=above)[:-1]]


def add(instance: dg.DagsterInstance, keys: Sequence[str]) -> None:
    """Add partitions behind those that are there."""
    instance.add_dynamic_partitions(str(id_ranges.name), keys)


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
    first, last = IdRange.from_key(keys[0]), IdRange.from_key(keys[-1])
    return IdRange(first.lower, last.upper, first.kind)


def _cut(database: Database, settings: Settings, *, above: Id | None = None) -> list[IdRange]:
    state = require_table(database, settings)
    with database.autocommit() as connection:
        return cut_ranges(
            connection,
            TargetTable.from_settings(settings),
            state.table.id_kind,
            settings.partition_rows,
            above=above,
        )
