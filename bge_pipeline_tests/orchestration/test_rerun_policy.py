"""What is decided about a failed partition. No Dagster, no database."""

import pytest

from bge_pipeline.orchestration.rerun_policy import Attempt, GiveUp, Rerun, RerunPolicy, Wait

POLICY = RerunPolicy(max_attempts=3, backoff_seconds=60)


def failed(*times: float) -> list[Attempt]:
    return [Attempt(f"run-{number}", time) for number, time in enumerate(times, start=1)]


def test_a_failed_partition_runs_again_when_its_backoff_is_over():
    assert POLICY.decide("1_2", failed(1000), now=1061) == Rerun(run_key="1_2:run-1", attempt=2)


def test_the_run_key_changes_with_each_failure_because_dagster_drops_a_key_it_has_seen():
    first = POLICY.decide("1_2", failed(1000), now=5000)
    second = POLICY.decide("1_2", failed(1000, 2000), now=5000)

    assert isinstance(first, Rerun)
    assert isinstance(second, Rerun)
    assert first.run_key != second.run_key


def test_the_wait_doubles_with_each_failure():
    assert POLICY.decide("1_2", failed(1000), now=1030) == Wait("failed 1 times, next try in 30 s")
    assert POLICY.decide("1_2", failed(1000, 2000), now=2030) == Wait("failed 2 times, next try in 90 s")


def test_the_wait_never_exceeds_an_hour():
    assert RerunPolicy(max_attempts=99, backoff_seconds=60).pause_seconds(40) == 3_600


def test_after_the_last_attempt_a_person_is_told_and_nothing_runs():
    decision = POLICY.decide("1_2", failed(1, 2, 3), now=99_999)

    assert isinstance(decision, GiveUp)
    assert "failed 3 times (MAX_PARTITION_ATTEMPTS=3)" in decision.reason


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Attempt("run-9", None), "run run-9 is queued or under way"),
        (Attempt("run-9", 99_998, is_retried_by_dagster=True), "Dagster itself retries run run-9"),
    ],
)
def test_a_partition_that_somebody_runs_already_is_left_alone(last: Attempt, reason: str):
    assert POLICY.decide("1_2", [*failed(1000), last], now=99_999) == Wait(reason)


def test_a_retry_that_dagster_announced_and_never_started_is_not_waited_for():
    announced = Attempt("run-1", 1000, is_retried_by_dagster=True)

    assert POLICY.decide("1_2", [announced], now=1301) == Rerun(run_key="1_2:run-1", attempt=2)


def test_a_partition_that_a_backfill_will_run_is_left_to_it():
    decision = POLICY.decide("1_2", failed(1000), now=99_999, is_claimed=True)

    assert decision == Wait("a Dagster backfill that is under way includes it")


def test_a_cancelled_run_is_not_started_again():
    decision = POLICY.decide("1_2", [Attempt("run-1", 1000, was_cancelled=True)], now=99_999)

    assert decision == GiveUp("run run-1 was cancelled by somebody; materialize the partition by hand to go on")


def test_a_cancelled_run_is_not_counted_as_a_failure():
    attempts = [Attempt("run-1", 1000, was_cancelled=True), *failed(2000, 3000)]

    assert POLICY.decide("1_2", attempts, now=99_999) == Rerun(run_key="1_2:run-2", attempt=3)
