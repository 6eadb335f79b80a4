"""The pool of the encoder: how many runs may load the model at once, written into Dagster's records before one is queued."""

import dagster as dg
from sqlalchemy.exc import IntegrityError

from bge_pipeline.orchestration.names import POOL

_RUNS_AT_ONCE = 1


def register_pool(instance: dg.DagsterInstance, pool: str = POOL) -> None:
    """Give the pool its limit where it has none: `default_limit` of dagster.yaml, or one run at a time.

    `default_limit` alone is too late and too little (Dagster 1.13, `QueuedRunCoordinatorDaemon._get_runs_to_dequeue`). The
    daemon reads which pools there are before it applies the default, so that everything that is queued when it first meets
    a pool starts at once. And on PostgreSQL a default that is changed afterwards ends in an error, on which the daemon
    lets every run go. A limit that was set by name is neither, and stays as a person has set it.
    """
    records = instance.event_log_storage
    # A run without an instance of its own keeps its records in memory, where there are no pools.
    if not records.supports_global_concurrency_limits or _is_set_by_name(instance, pool):
        return
    default = instance.global_op_concurrency_default_limit
    try:
        records.set_concurrency_slots(pool, _RUNS_AT_ONCE if default is None else default)
    except IntegrityError:
        # Another process did it at this very moment; anything else is not forgiven.
        if not _is_set_by_name(instance, pool):
            raise


def _is_set_by_name(instance: dg.DagsterInstance, pool: str) -> bool:
    return any(limit.name == pool and not limit.from_default for limit in instance.event_log_storage.get_pool_limits())
