"""The quality gate in a backfill that is launched from the asset's page: measured by the run of the last partition alone."""

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData

from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.run_history import others_are_to_come
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases import verdict
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, checks_of, request_backfill

pytestmark = pytest.mark.pgvector

ASSET = dg.AssetKey("backfilled_embeddings")
OF_BACKFILL = {"dagster/backfill": "requested"}


@pytest.fixture(autouse=True)
def _expanded(run: Runner) -> None:
    assert run("expand_job").success


def materialize(instance: dg.DagsterInstance, key: str, tags: dict[str, str] | None = None) -> list[str]:
    """Run a partition as the asset's page does, every check included; the checks that gave an answer."""
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={ASSET})
    result = job.execute_in_process(instance=instance, partition_key=key, tags=tags, raise_on_error=False)
    assert result.success
    return checks_of(instance, result.run_id)


def test_a_first_backfill_measures_once_and_at_its_end(instance: dg.DagsterInstance):
    assert [materialize(instance, key).count("quality_gate") for key in KEYS] == [0, 0, 1]


def test_the_other_checks_are_asked_of_each_partition(instance: dg.DagsterInstance):
    asked = ["moving", "nothing_pending", "right_embedding_space", "unit_length"]
    assert sorted(materialize(instance, KEYS[0])) == asked


def test_a_single_partition_that_is_run_again_measures(instance: dg.DagsterInstance, run: Runner):
    run.backfill()

    assert "quality_gate" in materialize(instance, KEYS[0])


def test_a_backfill_of_what_is_done_already_measures_once_and_at_its_end(instance: dg.DagsterInstance, run: Runner):
    run.backfill()
    request_backfill(instance, KEYS)

    assert [materialize(instance, key, OF_BACKFILL).count("quality_gate") for key in KEYS] == [0, 0, 1]


def test_the_swap_takes_the_verdict_of_its_check(run: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUALITY_GATE", "enforce")
    run.backfill()
    measured = []
    measure = verdict.measure_quality
    monkeypatch.setattr(verdict, "measure_quality", lambda *given: measured.append(1) or measure(*given))

    result = run("swap_job")

    assert result.success
    assert len(measured) == 1
    (swapped,) = result.asset_materializations_for_node("swapped_index")
    assert swapped.metadata["quality_gate"].value == "passed"
    assert swapped.metadata["quality_ann_recall"].value > 0.9


class TestBesideOtherRunsOfTheBackfill:
    """Where the pool lets more than one run go."""

    @pytest.fixture
    def last(self, instance: dg.DagsterInstance, run: Runner) -> dg.DagsterRun:
        run.backfill()
        request_backfill(instance, KEYS[:2])
        return self._run(instance, KEYS[0], dg.DagsterRunStatus.STARTED)

    def _run(self, instance: dg.DagsterInstance, key: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        return instance.create_run_for_job(
            defs.resolve_job_def("backfill_job"),
            status=status,
            tags={"dagster/partition": key, **OF_BACKFILL},
            asset_selection=None,
        )

    @pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
    def test_it_is_left_to_a_run_that_has_yet_to_embed(
        self, instance: dg.DagsterInstance, last: dg.DagsterRun, status: dg.DagsterRunStatus
    ):
        self._run(instance, KEYS[1], status)

        assert others_are_to_come(instance, THE_TABLE, last)

    def test_it_is_not_left_to_a_run_that_has_embedded_and_may_have_left_it_to_this_one(
        self, instance: dg.DagsterInstance, last: dg.DagsterRun
    ):
        other = self._run(instance, KEYS[1], dg.DagsterRunStatus.STARTED)
        instance.report_dagster_event(
            dg.DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name=other.job_name,
                event_specific_data=StepMaterializationData(dg.AssetMaterialization(ASSET, partition=KEYS[1])),
            ),
            other.run_id,
        )

        assert not others_are_to_come(instance, THE_TABLE, last)
