"""The command `bge-pipeline`, as a person or a CI job runs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from bge_pipeline.cli import invocation
from bge_pipeline.database.connection import Database
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.orchestration.dev_server import run_dev
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline_tests.roads import environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(settings: Settings, tmp_path: Any) -> Run:
    def run_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bge_pipeline", *arguments],
            env=environment(settings, **variables),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run_command


@pytest.mark.pgvector
def test_plan_changes_nothing_and_names_rows_time_disk_and_index(run: Run) -> None:
    before = json.loads(run("status", "--json").stdout)
    plan = json.loads(run("plan", "--json").stdout)

    assert plan["pending"] == plan["rows"] == before["rows"]
    assert (plan["old_dimensions"], plan["new_dimensions"]) == (1536, 384)
    assert plan["texts_per_second"] > 0
    assert plan["disk_bytes"] > plan["rows"] * 384 * 4
    assert plan["index"]["lists"] == 1
    assert plan["obstacles"] == []
    assert json.loads(run("status", "--json").stdout) == before


@pytest.mark.pgvector
def test_plan_exits_with_3_where_something_is_in_the_way(run: Run, database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(text("CREATE VIEW embedded AS SELECT id, embedding FROM segments"))

    planned = run("plan", "--json")

    assert planned.returncode == 3
    assert "view embedded" in json.loads(planned.stdout)["obstacles"][0]


@pytest.mark.pgvector
def test_an_endpoint_without_a_key_fills_no_column(run: Run) -> None:
    refused = run("migrate", EMBEDDING_PROVIDER="openai")
    assert refused.returncode == 2
    assert "EMBEDDING_API_KEY" in refused.stderr


@pytest.mark.pgvector
def test_migrate_rollback_migrate_and_retire(run: Run) -> None:
    migrated = run("migrate", "--json")
    assert migrated.returncode == 0, migrated.stderr
    status = json.loads(run("status", "--json").stdout)
    assert {name: status[name] for name in ("phase", "pending", "dimensions", "quarantined")} == {
        "phase": "swapped",
        "pending": 0,
        "dimensions": 384,
        "quarantined": 0,
    }
    assert status["index"]["valid"]

    assert json.loads(run("rollback", "--yes", "--json").stdout)["rows_without_old_vector"] == 0
    assert json.loads(run("status", "--json").stdout)["dimensions"] == 1536

    assert run("migrate", "--yes").returncode == 0
    refused = run("retire")
    assert (refused.returncode, "no way back" in refused.stderr) == (2, True)
    assert run("retire", "--yes").returncode == 0
    assert json.loads(run("status", "--json").stdout)["phase"] == "retired"


@pytest.mark.pgvector
def test_migrate_says_what_it_did_and_what_comes_next(run: Run) -> None:
    out = run("migrate").stdout
    assert "300 rows" in out
    assert "held its lock for" in out
    assert "bge-pipeline retire" in out


@pytest.mark.pgvector
def test_a_second_migrate_changes_nothing(run: Run) -> None:
    run("migrate")
    again = json.loads(run("migrate", "--json").stdout)
    assert again["backfill"]["rows"] == 0
    assert not again["swap"]["exchanged"]


@pytest.mark.pgvector
@pytest.mark.thorough
def test_rollback_discards_a_migration_that_was_not_swapped_yet(run: Run, database: Database) -> None:
    run("migrate")
    run("rollback", "--yes")
    assert run("rollback", "--discard").returncode == 2
    assert run("rollback", "--discard", "--yes").returncode == 0
    assert json.loads(run("status", "--json").stdout)["phase"] == "legacy"


@pytest.mark.pgvector
@pytest.mark.thorough
def test_a_table_with_awkward_names_and_uuid_ids_is_migrated(run: Run, database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            text(
                'CREATE TABLE "Order Notes" ("Key" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "Body" text, vec vector(1536));'
                'INSERT INTO "Order Notes" ("Body", vec) SELECT text, embedding FROM segments'
            )
        )
    names = {
        "TARGET_TABLE": "Order Notes",
        "TARGET_ID_COLUMN": "Key",
        "TARGET_TEXT_COLUMN": "Body",
        "TARGET_EMBEDDING_COLUMN": "vec",
    }
    migrated = run("migrate", **names)
    assert migrated.returncode == 0, migrated.stderr
    status = json.loads(run("status", "--json", **names).stdout)
    assert (status["phase"], status["pending"], status["dimensions"]) == ("swapped", 0, 384)
    found = run("search", "how are generators closed", "--json", **names)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"]


@pytest.mark.pgvector
def test_set_overrides_a_variable(run: Run) -> None:
    run("--set", "INDEX_METHOD=hnsw", "migrate")
    assert json.loads(run("status", "--json").stdout)["index"]["method"] == "hnsw"


@pytest.mark.pgvector
def test_an_unreachable_database_is_one_message_without_the_password(run: Run) -> None:
    result = run("status", DATABASE_URL="postgresql://someone:hunter2@127.0.0.1:1/nowhere")
    assert result.returncode == 4
    assert "cannot reach postgresql+psycopg2://someone:***@127.0.0.1:1/nowhere" in result.stderr.replace("\n", "")
    assert "hunter2" not in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_a_folder_without_a_database_is_left_without_one(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    result = subprocess.run(
        [sys.executable, "-m", "bge_pipeline", "status"],
        env=variables | {"BGE_PIPELINE_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "DATABASE_URL is not set, and there is no embedded PostgreSQL" in " ".join(result.stderr.split())
    assert not (tmp_path / "home").exists()


def test_the_ui_is_not_started_in_a_folder_without_a_database(tmp_path: Path) -> None:
    result = run_dev_command(tmp_path)
    assert result.returncode == 2
    assert "DATABASE_URL is not set, and there is no embedded PostgreSQL" in " ".join(result.stderr.split())
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("variable", ["DATABASE_URL", "DAGSTER_DATABASE_URL"])
@pytest.mark.pgvector
def test_the_ui_says_at_its_start_that_a_database_cannot_be_reached(
    tmp_path: Path, database_url: str, variable: str
) -> None:
    unreachable = {"DATABASE_URL": database_url, variable: "postgresql://app:hunter2@127.0.0.1:1/app"}
    result = run_dev_command(tmp_path, **unreachable)
    said = " ".join(result.stderr.split())
    assert result.returncode == 4
    assert "cannot reach postgresql+psycopg2://app:***@127.0.0.1:1/app" in said
    assert f"check {variable}" in said
    assert "hunter2" not in said + result.stdout
    assert "Dagster UI" not in result.stdout


def run_dev_command(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`bge-pipeline dev` that is expected to end by itself, on whatever port is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return subprocess.run(
        [sys.executable, "-m", "bge_pipeline", "dev", "--port", str(port)],
        env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        | {"BGE_PIPELINE_HOME": str(folder / "home")}
        | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            run_dev(load_settings(bge_pipeline_home=tmp_path), port=port)


def test_ctrl_c_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        sys.exit(invocation.INTERRUPTED)  # as typer does

    monkeypatch.setattr(invocation, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        invocation.main()
    assert ended.value.code == 130
    assert "bge-pipeline migrate resumes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.pgvector
def test_reranking_without_a_reranker_is_refused(run: Run) -> None:
    result = run("search", "a question", "--rerank", "always")
    assert result.returncode == 2
    assert "ENABLE_RERANKER" in result.stderr


@pytest.mark.thorough
@pytest.mark.pgvector
def test_the_plan_for_the_next_model_counts_every_row(run: Run) -> None:
    assert json.loads(run("plan", "--json").stdout)["pending"] == 300
    run("migrate")
    run("retire", "--yes")
    assert json.loads(run("plan", "--json").stdout)["pending"] == 0
    assert "every row has a vector of this model" in " ".join(run("plan").stdout.split())
    assert json.loads(run("plan", "--json", EMBEDDING_DIMENSIONS="256").stdout)["pending"] == 300


@pytest.mark.pgvector
def test_a_missing_table_is_named_with_what_to_do(run: Run) -> None:
    result = run("migrate", TARGET_TABLE="segmints")
    assert result.returncode == 2
    assert "segmints" in result.stderr
    assert "TARGET_TABLE" in result.stderr


@pytest.mark.pgvector
def test_wrong_dimensions_are_refused_before_anything_is_written(run: Run, database: Database) -> None:
    result = run("migrate", EMBEDDING_MODEL="bundled", EMBEDDING_DIMENSIONS="512")
    assert result.returncode == 2
    assert "512" in result.stderr
    assert "384" in result.stderr
    assert json.loads(run("status", "--json").stdout)["phase"] == "legacy"


@pytest.mark.pgvector
def test_a_bad_value_names_the_variable_and_what_it_may_hold(run: Run) -> None:
    result = run("status", INDEX_METHOD="btree")
    assert result.returncode == 2
    assert "INDEX_METHOD" in result.stderr
    assert "'ivfflat' or 'hnsw'" in result.stderr


@pytest.mark.pgvector
def test_an_unknown_setting_is_refused(run: Run) -> None:
    result = run("--set", "INDEX_METHODS=hnsw", "status")
    assert result.returncode == 2
    assert "INDEX_METHODS" in result.stderr


def test_every_command_has_help() -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "bge_pipeline", "--help"], capture_output=True, text=True, check=True
    )
    names = "demo plan migrate embed pause resume status rollback retire search benchmark dev"
    for name in names.split():
        assert f"\n  {name}" in listing.stdout


def test_importing_the_package_and_the_command_loads_no_model_library() -> None:
    script = (
        "import sys, bge_pipeline, bge_pipeline.cli;"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'openvino', 'dagster') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.pgvector
@pytest.mark.thorough
def test_alembic_runs_its_revisions_with_the_settings_of_the_command(run: Run) -> None:
    done = run("--set", "OLD_INDEX=keep", "alembic", "upgrade", "005")

    assert done.returncode == 0, done.stderr
    assert json.loads(run("status", "--json").stdout)["phase"] == "expanded"
    assert "dropping index" not in done.stderr
    assert "005 (head)" not in run("alembic", "current").stdout
    assert "005" in run("alembic", "current").stdout


@pytest.mark.pgvector
def test_alembic_ends_with_the_exit_code_of_the_phase_and_writes_no_revision(run: Run) -> None:
    failed = run("alembic", "upgrade", "005", TARGET_TABLE="nowhere")
    refused = run("alembic", "revision", "-m", "mine")
    unknown = run("alembic", "upgrade", "999")

    assert failed.returncode == 2
    assert failed.stderr.count('the target table "public"."nowhere" does not exist') == 1
    assert refused.returncode == 2
    assert "expected one of upgrade, downgrade" in refused.stderr
    assert unknown.returncode == 1
    assert "Traceback" not in failed.stderr + refused.stderr + unknown.stderr


@pytest.mark.thorough
@pytest.mark.pgvector
def test_compare_search_sets_both_columns_side_by_side_whatever_the_width(run: Run) -> None:
    assert run("migrate", "--yes", QUALITY_GATE="off").returncode == 0

    (pair,) = json.loads(run("compare-search", "open a file", "--top-k", "3", "--json").stdout)["pairs"]

    assert len(pair["old"]) == len(pair["new"]) == 3
    for columns in ("60", "80", "200"):
        shown = run("compare-search", "open a file", "--top-k", "3", COLUMNS=columns)
        assert shown.returncode == 0
        assert pair["summary"] in shown.stdout
        for hit in (*pair["old"], *pair["new"]):
            assert f"[{hit['row_id']}]" in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= int(columns)
