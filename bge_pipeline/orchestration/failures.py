"""From this package's errors to Dagster's failures: what a person can read, and whether another try can help."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from bge_pipeline.errors import (
    BgePipelineError,
    BudgetSpent,
    DatabaseUnavailable,
    EncodingError,
    LockNotAcquired,
    LoginRefused,
)
from bge_pipeline.orchestration.metadata import as_dagster_metadata
from bge_pipeline.orchestration.names import BUDGET_SPENT_TAG
from bge_pipeline.orchestration.own_tags import tag_itself
from bge_pipeline.orchestration.partitions import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG
from bge_pipeline.orchestration.served import ServedTable

_TRANSIENT = (DatabaseUnavailable, LockNotAcquired, EncodingError)

TRANSIENT_RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Retries within a run; errors that a second try cannot change are not retried, see `explained`."""

_INTERRUPT_KEY = "interrupted"
_INTERRUPT_STATE = "every committed batch is kept, and no column is exchanged by half"


@contextmanager
def explained(table: ServedTable) -> Iterator[None]:
    """Turn an error that this package can explain into a Failure with its state and next step as metadata.

    An interrupt is one of them: Dagster would count it as one more failure for the retry policy, and start over.

    Raises:
        dagster.Failure: retried by the retry policy only where the cause may pass by itself, and not in its last try, whose
            failure Dagster would report as "Exceeded max_retries" instead of the cause.
    """
    try:
        yield
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
        next_step = launch_again(dg.OpExecutionContext.get().run)
        raise dg.Failure(
            description=f"interrupted\nState: {_INTERRUPT_STATE}\nNext: {next_step}",
            metadata={_INTERRUPT_KEY: type(error).__name__, "state": _INTERRUPT_STATE, "next_step": next_step},
            allow_retries=False,
        ) from error
    except BgePipelineError as error:
        if isinstance(error, BudgetSpent):
            context = dg.OpExecutionContext.get()
            tag_itself(context.instance, context.run_id, BUDGET_SPENT_TAG)
        raise dg.Failure(
            description=table.worded(str(error)),
            metadata=as_dagster_metadata(
                {
                    "error": type(error).__name__,
                    "state": error.state,
                    "next_step": error.next_step and table.worded(error.next_step),
                }
            ),
            allow_retries=_may_pass(error) and not _is_last_try(),
        ) from error
    except dg.Failure:
        raise
    except Exception as error:
        if not _is_last_try():
            raise
        raise dg.Failure(
            description=f"{type(error).__name__}: {error}",
            metadata={"error": type(error).__name__},
            allow_retries=False,
        ) from error


def launch_again(run: dg.DagsterRun) -> str:
    """What a person does to go on with a run that was stopped."""
    if run.job_name.startswith("__"):
        selected = sorted(asset.to_user_string() for asset in run.asset_selection or ())
        what = f"materialize {', '.join(selected) or 'the same assets'}"
    else:
        what = f"launch {run.job_name}"
    first, last = run.tags.get(RANGE_START_TAG), run.tags.get(RANGE_END_TAG)
    if first == last:
        key = run.tags.get(PARTITION_TAG, first)
        which = f", partition {key}," if key else ""
    else:
        which = f", partitions {first} to {last},"
    return f"{what}{which} again: it goes on with what is left"


def was_interrupted(events: Iterable[dg.DagsterEvent]) -> bool:
    """Whether an interrupt is what ended a step."""
    failures = (event.step_failure_data.user_failure_data for event in events if event.is_step_failure)
    return any(failure is not None and _INTERRUPT_KEY in failure.metadata for failure in failures)


def _may_pass(error: BgePipelineError) -> bool:
    return isinstance(error, _TRANSIENT) and not isinstance(error, LoginRefused)


def _is_last_try() -> bool:
    return dg.OpExecutionContext.get().retry_number >= TRANSIENT_RETRIES.max_retries
