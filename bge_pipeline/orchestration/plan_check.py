"""The plan as an asset check, which looks at the table before anything is done to it. What it finds is phases/plan.py's."""

from typing import Any

import dagster as dg

from bge_pipeline.orchestration.failures import explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata
from bge_pipeline.orchestration.names import SCHEMA
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.endpoint_use import EndpointUse
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.unloaded_model import unloaded_model

_TO_LOOK_AT = ("warnings", "triggers", "publications", "mentions")
"""Findings of the plan that stop nothing, and that a person should have seen before they go on."""
_MEASURED = ("tokens", "texts_per_second", "backfill_seconds", "device", "precision")
"""Figures of the model, which are left out where it has not run on this table."""


@per_table(
    lambda table: dg.asset_check(
        asset=table.key(SCHEMA),
        name="plan",
        description=(
            "What the migration will meet, from the table as it is: views and other objects that would make the swap refuse, "
            "missing privileges, triggers, publications, rows, disk, and the time it takes once a backfill has been measured. "
            "It changes nothing and loads no model: execute it by itself before the column is added. `bge-pipeline plan` says "
            "the same, and measures the model as well."
        ),
    )
)
def plan_of_migration(table: ServedTable, migration: dg.ResourceParam[Migration]) -> dg.AssetCheckResult:
    """Whether anything stands in the way of the migration."""
    with explained(table):
        plan_now = plan(migration, unloaded_model(migration))
    found = plan_now.as_metadata()
    if not found["texts_per_second"]:
        found = {name: value for name, value in found.items() if name not in _MEASURED}
    to_look_at = [f"{name}: {item}" for name in _TO_LOOK_AT for item in found.get(name, ())]
    return dg.AssetCheckResult(
        passed=not found["obstacles"] and not to_look_at,
        severity=dg.AssetCheckSeverity.ERROR if found["obstacles"] else dg.AssetCheckSeverity.WARN,
        description=table.worded("\n\n".join([*found["obstacles"], *to_look_at, _size(found, plan_now.endpoint)])),
        metadata=as_dagster_metadata(found),
    )


def _size(found: dict[str, Any], endpoint: EndpointUse | None) -> str:
    rows = f"{found['pending']:,} of {found['rows']:,} rows are to be embedded"
    disk = f"{found['disk_bytes'] / 1e6:,.1f} MB more disk until the old column is retired"
    time = (
        f"about {found['backfill_seconds'] / 60:,.1f} min at the {found['texts_per_second']:,.0f} texts/s of the last backfill"
        if "backfill_seconds" in found
        else "the time is not known before a first partition is embedded, or bge-pipeline plan has measured the model"
    )
    sent = f"; {endpoint}" if endpoint is not None else ""
    return f"{rows}; {disk}; {time}{sent}"
