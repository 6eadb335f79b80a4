"""Dagster, and nothing else: assets, checks, jobs, sensors, resources and the instance. The work is in phases/.

Modules here have no `from __future__ import annotations`: Dagster reads parameter types at run time.
"""

import warnings

import dagster as dg

# Dagster says so on every load of the code location, in front of whatever a command prints.
warnings.filterwarnings("ignore", message="Parameter `(backfill_policy|owners)`", category=dg.BetaWarning)
