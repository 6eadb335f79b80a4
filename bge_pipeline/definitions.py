"""The code location: everything that Dagster loads, of each table that it serves. The parts are in orchestration/."""

from bge_pipeline.orchestration.code_location import code_location
from bge_pipeline.orchestration.served import served_tables

defs = code_location(served_tables())
