"""From this package's errors to Dagster's failures: what a person can read, and whether another try can help."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from bge_pipeline.errors import BgePipelineError, DatabaseUnavailable, EncodingError, LockNotAcquired
from bge_pipeline.orchestration.metadata import as_dagster_metadata

_TRANSIENT = (DatabaseUnavailable, LockNotAcquired, EncodingError)

TRANSIENT_RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Retries within a run; errors that a second try cannot change are not retried, see `explained`."""

_INTERRUPTED = "interrupted; every committed batch is kept, and the next run resumes"
_INTERRUPT_KEY = "interrupted"


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error that this package can explain into a Failure with its state and next step as metadata.

    An interrupt is one of them: Dagster would count it as one more failure for the retry policy, and start over.

    Raises:
        dagster.Failure: retried by the retry policy only where the cause may pass by itself.
    """
    try:
        yield
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
        raise dg.Failure(
            description=_INTERRUPTED, metadata={_INTERRUPT_KEY: type(error).__name__}, allow_retries=False
        ) from error
    except BgePipelineError as error:
        raise dg.Failure(
            description=str(error),
            metadata=as_dagster_metadata(
                {"error": type(error).__name__, "state": error.state, "next_step": error.next_step}
            ),
            allow_retries=isinstance(error, _TRANSIENT),
        ) from error


def was_interrupted(events: Iterable[dg.DagsterEvent]) -> bool:
    """Whether an interrupt is what ended a step."""
    failures = (event.step_failure_data.user_failure_data for event in events if event.is_step_failure)
    return any(failure is not None and _INTERRUPT_KEY in failure.metadata for failure in failures)
