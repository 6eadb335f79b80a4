"""The code location: everything that Dagster loads. The parts are in orchestration/."""

import dagster as dg

from bge_pipeline.orchestration.alarm_sensors import ALARM_SENSORS
from bge_pipeline.orchestration.assets import ASSETS
from bge_pipeline.orchestration.checks import CHECKS
from bge_pipeline.orchestration.comparison import model_comparison
from bge_pipeline.orchestration.jobs import JOBS
from bge_pipeline.orchestration.resources import resources
from bge_pipeline.orchestration.sensors import SENSORS

# One process a run: the model is loaded once for all of its steps.
defs = dg.Definitions(
    assets=[*ASSETS, model_comparison],
    asset_checks=CHECKS,
    jobs=JOBS,
    sensors=[*SENSORS, *ALARM_SENSORS],
    resources=resources(),
    executor=dg.in_process_executor,
)
