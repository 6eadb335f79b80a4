"""One rule for settings under `dev`, and anybody can see which are in force; secrets stay hidden."""

from pathlib import Path

import dagster as dg
import pytest

from bge_pipeline.orchestration.dagster_home import environment
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline.settings.configuration import in_force
from bge_pipeline_tests.orchestration.conftest import KEYS, Runner


def test_neither_a_changed_nor_a_new_line_of_the_file_reaches_a_process_of_dev(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    env_file = tmp_path / ".env"
    env_file.write_text("PARTITION_ROWS=70\n")
    started = environment(load_settings(bge_pipeline_home=tmp_path / "home"))
    env_file.write_text("PARTITION_ROWS=80\nBACKFILL_BATCH_ROWS=5\n")
    for name, value in started.items():
        monkeypatch.setenv(name, value)

    found = load_settings()

    assert found.partition_rows == 70
    assert found.backfill_batch_rows == Settings.model_fields["backfill_batch_rows"].default


def test_what_is_in_force_is_shown_without_passwords_and_defaults():
    settings = load_settings(
        database_url="postgresql://somebody:secret@host/app",
        embedding_api_key="sk-secret",
        partition_rows=7,
        target_table="segments",
    )

    shown = in_force(settings)

    assert shown["PARTITION_ROWS"] == "7"
    assert shown["DATABASE_URL"] == "postgresql://somebody:***@host/app"
    assert "secret" not in str(shown)
    assert "TARGET_TABLE" not in shown


@pytest.mark.pgvector
def test_runs_show_them_in_their_log_and_as_metadata(instance: dg.DagsterInstance, run: Runner):
    run("expand_job")
    result = run("backfill_job", KEYS[0], run_config={"resources": {"settings": {"config": {"quality_gate": "warn"}}}})

    (materialization,) = result.asset_materializations_for_node("backfilled_embeddings")
    shown = materialization.metadata["settings"].value
    assert isinstance(shown, dict)
    assert (shown["QUALITY_GATE"], shown["PARTITION_ROWS"]) == ("warn", "100")
    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert any("settings in force" in line and "QUALITY_GATE=warn" in line for line in logged)


@pytest.mark.pgvector
def test_the_launchpad_takes_what_an_error_advises_and_refuses_what_it_does_not_know(run: Runner):
    config = {"resources": {"settings": {"config": {"dependents": "ignore", "old_index": "drop"}}}}
    assert run("expand_job", run_config=config).success

    with pytest.raises(dg.DagsterInvalidConfigError):
        run("expand_job", run_config={"resources": {"settings": {"config": {"target_table": "other"}}}})
