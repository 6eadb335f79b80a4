"""The Dagster road on a real database: every phase in this process, on a persistent instance."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.definitions import defs
from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.orchestration import assets, run_history
from bge_pipeline.orchestration.in_process import migrate_through_dagster
from bge_pipeline.orchestration.partitions import known_keys
from bge_pipeline.orchestration.progress import StepProgress
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.phases.backfill import BackfillResult, backfill
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner, consenting, insert_segment
from bge_pipeline_tests.partitions import divide
from bge_pipeline_tests.support import execute, scalar

pytestmark = pytest.mark.pgvector


def test_the_whole_migration_is_in_the_history_that_the_ui_shows_and_repeating_it_changes_nothing(
    database: Database, settings: Settings
):
    steps: list[StepProgress] = []

    migration = migrate_through_dagster(settings, on_progress=steps.append)

    status = read_status(Migration(database, settings))
    assert (status.phase, status.pending, status.dimensions) == ("swapped", 0, 384)
    assert migration.partitions == 3
    assert migration.figures["backfill_texts_per_second"] > 0
    assert "segments" in migration.report
    assert {(step.step, step.partition, step.partitions) for step in steps} == {
        ("schema_with_384_column", 0, 0),
        *(("backfilled_embeddings", number, 3) for number in (1, 2, 3)),
        ("swapped_index", 0, 0),
        ("benchmark_report", 0, 0),
    }
    with dg.DagsterInstance.get() as instance:
        jobs = [instance.get_run_by_id(run_id) for run_id in migration.run_ids]
        assert [job.job_name for job in jobs if job is not None and job.is_success] == [
            "expand_job",
            "backfill_job",
            "backfill_job",
            "backfill_job",
            "swap_job",
            "report_job",
        ]
        assert instance.get_materialized_partitions(dg.AssetKey("backfilled_embeddings")) == set(KEYS)

    before = vectors_digest(database)
    migrate_through_dagster(settings)
    assert vectors_digest(database) == before


@pytest.mark.thorough
def test_a_report_whose_files_cannot_be_written_is_in_the_ui_all_the_same(settings: Settings):
    settings.home.mkdir(parents=True)
    (settings.home / "reports").write_text("no folder")

    assert "segments" in migrate_through_dagster(settings).report


@pytest.mark.thorough
def test_a_partitioned_table_is_one_set_of_id_ranges_over_all_its_partitions(database: Database, settings: Settings):
    divide(database, "hash")

    assert migrate_through_dagster(settings).partitions == 3

    status = read_status(Migration(database, settings))
    assert (status.phase, status.embedded, status.pending, status.dimensions) == ("swapped", 300, 0, 384)
    assert status.index is not None
    assert (status.index.name, status.index.valid) == ("old_name", True)


def vectors_digest(database: Database) -> object:
    return scalar(database, "SELECT md5(string_agg(embedding::text, ',' ORDER BY id)) FROM segments")


def test_why_a_step_failed_is_one_readable_error(database: Database, settings: Settings):
    execute(database, "ALTER TABLE segments RENAME COLUMN text TO body")

    with pytest.raises(BgePipelineError, match=r"expand_job failed: .*has no TARGET_TEXT_COLUMN 'text'") as raised:
        migrate_through_dagster(settings)

    assert "Traceback" not in str(raised.value)


def test_one_run_over_a_range_reports_each_partition(instance: dg.DagsterInstance, run: Runner):
    assert run("expand_job").success

    assert run.backfill(KEYS[1], KEYS[2]).success

    records = instance.fetch_materializations(dg.AssetKey("backfilled_embeddings"), limit=10).records
    found = [record.asset_materialization for record in records if record.asset_materialization is not None]
    assert {(m.partition, m.metadata["rows"].value, m.metadata["id_range"].value) for m in found} == {
        (KEYS[1], 100, "[101, 201)"),
        (KEYS[2], 100, "[201, 301)"),
    }


def test_a_range_that_fails_in_its_middle_keeps_the_partitions_that_are_done(
    instance: dg.DagsterInstance, run: Runner, monkeypatch: pytest.MonkeyPatch
):
    assert run("expand_job").success
    ran: list[object] = []

    def fails_at_the_second(migration: Migration, encoder: Encoder, id_range: IdRange, **rest: Any) -> BackfillResult:
        ran.append(id_range)
        if len(ran) == 2:
            raise BgePipelineError("the machine lost power")
        return backfill(migration, encoder, id_range, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(assets, "backfill", fails_at_the_second)
        assert not run.backfill().success

    assert run_history.never_materialized(instance, THE_TABLE) == KEYS[1:]
    (record,) = instance.fetch_materializations(dg.AssetKey("backfilled_embeddings"), limit=10).records
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["rows"].value == 100


def test_the_launchpad_overrides_the_environment(instance: dg.DagsterInstance, run: Runner):
    result = run("expand_job", run_config={"resources": {"settings": {"config": {"partition_rows": 150}}}})

    assert result.success
    assert len(known_keys(instance, THE_TABLE)) == 2


def test_every_figure_of_a_partition_is_metadata(run: Runner):
    run("expand_job")

    (materialization,) = run("backfill_job", KEYS[0]).asset_materializations_for_node("backfilled_embeddings")

    assert {
        "rows",
        "texts_per_second",
        "pending_after",
        "read_seconds",
        "tokenize_seconds",
        "encode_seconds",
        "write_seconds",
        "truncated",
        "quarantined",
        "tokens",
        "device",
        "model",
        "peak_memory_bytes",
    } <= materialization.metadata.keys()


def test_rollback_and_retire_are_jobs_and_stand_in_the_history(
    migration: Migration, instance: dg.DagsterInstance, run: Runner
):
    run.migrate()

    assert run.rollback().success
    status = read_status(migration)
    assert status.dimensions == 1_536
    assert run("swap_job", run_config=consenting(forward_after_rollback=str(status.rolled_back))).success
    assert run.retire().success

    assert read_status(migration).phase == "retired"
    records = instance.fetch_materializations(dg.AssetKey("swapped_index"), limit=10).records
    found = [record.asset_materialization for record in records if record.asset_materialization is not None]
    states = [m.metadata["state"].value if "state" in m.metadata else "swapped" for m in found]
    assert states == ["retired", "swapped", "rolled back", "swapped"]


def test_retire_before_the_swap_fails_at_once_and_says_what_to_run(run: Runner):
    run("expand_job")

    result = run.retire()

    assert not result.success
    failure = result.filter_events(lambda event: event.is_step_failure)[0].step_failure_data.user_failure_data
    assert "search still reads the old column" in failure.description
    assert failure.metadata["next_step"].value == "bge-pipeline migrate"
    assert not result.filter_events(lambda event: event.is_step_up_for_retry)


def test_a_second_expand_keeps_the_partitions(instance: dg.DagsterInstance, run: Runner):
    run("expand_job")
    run.backfill()

    assert run("expand_job").success

    assert known_keys(instance, THE_TABLE) == KEYS
    assert run_history.never_materialized(instance, THE_TABLE) == []


def test_a_second_migration_begins_with_fresh_partitions(
    database: Database,
    make_settings: Callable[..., Settings],
    settings: Settings,
    instance: dg.DagsterInstance,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
):
    run.migrate()
    run.retire()
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "256")
    monkeypatch.setenv("PARTITION_ROWS", "150")

    assert run("expand_job", run_config=consenting(begin_next_migration="hashing")).success

    assert len(known_keys(instance, THE_TABLE)) == 2
    assert run_history.never_materialized(instance, THE_TABLE) == known_keys(instance, THE_TABLE)


class TestTheSwapIsBlocked:
    """A failed check of the whole table ends swap_job before the swap begins."""

    def _assert_blocked(self, result: dg.ExecuteInProcessResult, check: str, database: Database, settings: Settings):
        failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
        assert not result.success
        assert [evaluation.check_name for evaluation in failed] == [check]
        assert not result.asset_materializations_for_node("swapped_index")
        assert read_status(Migration(database, settings)).dimensions == 1_536

    def test_by_rows_that_are_pending(self, database: Database, settings: Settings, run: Runner):
        run("expand_job")
        run("backfill_job", KEYS[0])

        self._assert_blocked(run("swap_job"), "nothing_pending", database, settings)

    def test_by_vectors_that_are_not_of_unit_length(self, database: Database, settings: Settings, run: Runner):
        run("expand_job")
        run.backfill()
        execute(
            database,
            "UPDATE segments SET embedding_384 = embedding_384 * array_fill(2, ARRAY[384])::vector WHERE id = 7",
        )

        self._assert_blocked(run("swap_job"), "unit_length", database, settings)

    def test_by_vectors_that_stand_in_the_wrong_rows(self, database: Database, settings: Settings, run: Runner):
        run("expand_job")
        run.backfill()
        execute(
            database,
            "UPDATE segments s SET embedding_384 = o.embedding_384 FROM segments o WHERE o.id = 301 - s.id",
        )

        self._assert_blocked(run("swap_job"), "right_embedding_space", database, settings)


def test_a_swap_launched_without_its_checks_refuses_an_unfinished_backfill(
    migration: Migration, instance: dg.DagsterInstance, run: Runner
):
    run("expand_job")
    swap_alone = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey("swapped_index")}, asset_check_selection=set()
    )

    result = swap_alone.execute_in_process(instance=instance, raise_on_error=False)

    assert not result.success
    status = read_status(migration)
    assert (status.dimensions, status.pending) == (1_536, 300)


def test_the_few_rows_that_a_live_table_always_has_pending_do_not_block_the_swap(
    database: Database, migration: Migration, run: Runner
):
    run("expand_job")
    run.backfill()
    insert_segment(database, 1_000)
    execute(
        database, "UPDATE segments SET text = text || ' again' WHERE id <= 90"
    )  # few to the swap, so to the check too

    result = run("swap_job")

    assert result.success
    (pending,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "nothing_pending"]
    assert (pending.passed, pending.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (read_status(migration).phase, read_status(migration).pending) == (
        "swapped",
        0,
    )


def test_a_partition_is_checked_by_itself_and_not_against_the_whole_table(run: Runner):
    run("expand_job")

    result = run("backfill_job", KEYS[0])

    assert result.success
    assert {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()} == {
        "nothing_pending": True,
        "unit_length": True,
        "right_embedding_space": True,
    }


@pytest.mark.thorough
def test_an_interrupt_is_not_retried_and_the_next_call_resumes(
    migration: Migration, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    interrupted: list[str] = []

    def interrupt(progress: StepProgress) -> None:
        if progress.backfill is not None and not interrupted:
            interrupted.append(progress.step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate_through_dagster(settings, on_progress=interrupt)
    assert interrupted == ["backfilled_embeddings"]

    migrate_through_dagster(settings)
    assert read_status(migration).phase == "swapped"
