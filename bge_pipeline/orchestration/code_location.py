"""The definitions of a code location: assets, checks, jobs, sensors and resources of each of its tables."""

from collections.abc import Sequence

import dagster as dg

from bge_pipeline.orchestration.alarm_sensors import ALARM_SENSORS, tell_failures
from bge_pipeline.orchestration.assets import ASSETS
from bge_pipeline.orchestration.checks import CHECKS
from bge_pipeline.orchestration.comparison import model_comparison
from bge_pipeline.orchestration.jobs import JOBS
from bge_pipeline.orchestration.resources import resources
from bge_pipeline.orchestration.sensors import SENSORS
from bge_pipeline.orchestration.served import ServedTable


def code_location(tables: Sequence[ServedTable]) -> dg.Definitions:
    """All of it for these tables, each with names and resources of its own."""
    return dg.Definitions(
        assets=[asset.of(table) for table in tables for asset in (*ASSETS, model_comparison)],
        asset_checks=[check.of(table) for table in tables for check in CHECKS],
        jobs=[job.of(table) for table in tables for job in JOBS],
        sensors=[
            *(sensor.of(table) for table in tables for sensor in (*SENSORS, *ALARM_SENSORS)),
            tell_failures,
        ],
        resources={name: resource for table in tables for name, resource in resources(table).items()},
        # One process a run: the model is loaded once for all of its steps.
        executor=dg.in_process_executor,
    )
