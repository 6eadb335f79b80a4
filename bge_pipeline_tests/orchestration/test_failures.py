"""What a failed or stopped run says: the cause in its last words, no second try where none can help, and what to launch."""

from collections.abc import Callable

import dagster as dg
import pytest
from sqlalchemy.engine import URL

from bge_pipeline.errors import LockNotAcquired, SwapRefused
from bge_pipeline.orchestration import resources
from bge_pipeline.orchestration.failures import TRANSIENT_RETRIES, explained, launch_again
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner

LOCKED = LockNotAcquired("the lock was not to be had", state="nothing was changed", next_step="try again at night")


def run_that_raises(error: BaseException) -> dg.ExecuteInProcessResult:
    """A run of one step with the retries of every step of ours, but without their pauses."""

    @dg.op(retry_policy=dg.RetryPolicy(max_retries=TRANSIENT_RETRIES.max_retries))
    def failing() -> None:
        with explained(THE_TABLE):
            raise error

    @dg.job
    def failing_job() -> None:
        failing()

    return failing_job.execute_in_process(raise_on_error=False)


def retries(result: dg.ExecuteInProcessResult) -> int:
    return len(result.filter_events(lambda event: event.is_step_up_for_retry))


def last_words(result: dg.ExecuteInProcessResult) -> str:
    """What the UI shows of the step's failure: its error and what it was described as."""
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    data = failed.step_failure_data
    assert data.error is not None
    assert data.user_failure_data is not None
    assert data.user_failure_data.description in data.error.message
    return data.error.message


def test_the_last_of_several_tries_says_the_cause():
    result = run_that_raises(LOCKED)

    assert retries(result) == 2
    assert "the lock was not to be had" in last_words(result)
    assert "Next: try again at night" in last_words(result)
    assert "max_retries" not in last_words(result)


def test_the_last_of_several_tries_says_a_cause_that_nobody_foresaw():
    result = run_that_raises(ZeroDivisionError("division by zero"))

    assert retries(result) == 2
    assert "ZeroDivisionError: division by zero" in last_words(result)
    assert "max_retries" not in last_words(result)


def test_what_another_try_cannot_change_is_not_tried_again():
    result = run_that_raises(SwapRefused("nothing there to swap"))

    assert retries(result) == 0
    assert "nothing there to swap" in last_words(result)


@pytest.mark.pgvector
@pytest.mark.parametrize("part", ["username", "database"])
def test_a_refused_login_is_not_tried_again(
    run: Runner, database_url: str, monkeypatch: pytest.MonkeyPatch, server_url: URL, part: str
):
    refused = server_url.set(**{part: "nobody_knows_it"}, drivername="postgresql")
    monkeypatch.setenv("DATABASE_URL", refused.render_as_string(hide_password=False))

    result = run("expand_job")

    assert not result.success
    assert retries(result) == 0
    assert "nobody_knows_it" in last_words(result)
    assert "DATABASE_URL" in last_words(result)


def test_a_stopped_step_says_how_to_go_on():
    result = run_that_raises(KeyboardInterrupt())

    assert retries(result) == 0
    assert "launch failing_job again" in last_words(result)
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    data = failed.step_failure_data.user_failure_data
    assert data is not None
    assert "launch failing_job again" in str(data.metadata["next_step"].value)


@pytest.mark.parametrize(
    ("job", "tags", "expected"),
    [
        ("swap_job", {}, "launch swap_job again"),
        ("backfill_job", {"dagster/partition": KEYS[1]}, f"launch backfill_job, partition {KEYS[1]}, again"),
        (
            "__ASSET_JOB",
            {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[0]},
            f"materialize backfilled_embeddings, partition {KEYS[0]}, again",
        ),
        (
            "__ASSET_JOB",
            {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[2]},
            f"materialize backfilled_embeddings, partitions {KEYS[0]} to {KEYS[2]}, again",
        ),
    ],
)
def test_what_to_launch_again_is_what_was_launched(job: str, tags: dict[str, str], expected: str):
    run = dg.DagsterRun(job_name=job, tags=tags, asset_selection=frozenset({dg.AssetKey("backfilled_embeddings")}))

    assert launch_again(run).startswith(expected)


@pytest.mark.pgvector
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_a_run_that_is_stopped_while_it_loads_the_model_says_how_to_go_on(
    instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], BaseException]
):
    run("expand_job")

    def interrupted(*_: object) -> None:
        raise interrupt()

    monkeypatch.setattr(resources, "open_service", interrupted)

    result = run("backfill_job", KEYS[0])

    assert not result.success
    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert any(f"launch backfill_job, partition {KEYS[0]}, again" in message for message in logged)
