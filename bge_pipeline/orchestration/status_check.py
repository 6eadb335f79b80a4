"""Where the migration stands as an asset check, which is what the graph shows at a glance. The facts are phases/standing.py's."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.orchestration.cursors import read_kept
from bge_pipeline.orchestration.failures import explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata
from bge_pipeline.orchestration.names import SWAPPED
from bge_pipeline.orchestration.own_history import foreign_table, told_foreign
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.standing import outline, read_standing

CHECK = "migration_status"
_AGAIN_SECONDS = 3_600
"""Writes that change no column's part are looked at once an hour: rows are counted then, which reads the table."""


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(SWAPPED),
        name=CHECK,
        description=(
            "Phase, what search reads, its model and index, rows that search cannot find, the next step, and which database this "
            "is. Red after a rollback, where the column holds another model's vectors than the settings name, and where this "
            "history is another table's; amber where rows of the searched column have no vector. The sensor `watch_status` asks "
            "for it whenever one of these has changed, by whichever road."
        ),
    )
)
def migration_status(
    context: dg.AssetCheckExecutionContext,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> dg.AssetCheckResult:
    """How the table stands."""
    with explained(table):
        found = evaluate_status(context.instance, table, migration)
    return dg.AssetCheckResult(
        passed=found.passed, severity=found.severity, description=found.description, metadata=found.metadata
    )


def evaluate_status(instance: dg.DagsterInstance, table: ServedTable, migration: Migration) -> dg.AssetCheckEvaluation:
    """The check's answer now, for an op to log as well."""
    standing = read_standing(migration, configured_space(migration.settings))
    foreign = foreign_table(instance, table, migration)
    is_bad = foreign is not None or standing.level == "bad"
    return dg.AssetCheckEvaluation(
        asset_key=table.key(SWAPPED),
        check_name=CHECK,
        passed=foreign is None and standing.level == "good",
        severity=dg.AssetCheckSeverity.ERROR if is_bad else dg.AssetCheckSeverity.WARN,
        description=table.worded(
            "\n\n".join([*([told_foreign(*foreign)] if foreign is not None else []), str(standing)])
        ),
        metadata=as_dagster_metadata(standing.as_metadata()),
    )


def log_status(context: dg.OpExecutionContext, table: ServedTable, migration: Migration) -> None:
    """Log the check's answer from the op that has just changed what it is about."""
    # `log_event` takes it, though its annotation leaves it out.
    evaluation: Any = evaluate_status(context.instance, table, migration)
    context.log_event(evaluation)


@dataclass(frozen=True)
class _Seen:
    """What the sensor keeps of its last look.

    Attributes:
        seen: what a change of which calls for another.
        written: rows that were written so far.
        at: when it was, in seconds since the epoch.
    """

    seen: str
    written: int
    at: float


def seen_now(migration: Migration, cursor: str | None) -> tuple[str, bool]:
    """What there is to be seen, as the sensor's next cursor, and whether it calls for another look than the last."""
    seen, written = outline(migration, configured_space(migration.settings))
    now = time.time()
    last = read_kept(_Seen, cursor)
    is_due = last is None or last.seen != seen or (last.written != written and now - last.at >= _AGAIN_SECONDS)
    return (json.dumps(asdict(_Seen(seen, written, now))) if is_due else str(cursor)), is_due
