"""What the command asks, whom, and what it does where there is nobody to ask: real processes, real terminals."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import run_command
from bge_pipeline_tests.support import (
    ENCODER,
    execute,
    fill_and_swap,
    pending_ids,
    put_in_quarantine,
    schema_of,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
NEXT_MODEL = {"EMBEDDING_DIMENSIONS": "256"}
"""Another embedding space than the one that `settings` configures."""


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Run:
    """Runs the command; `answer` is typed at a terminal, None is cron's empty input."""

    def command(*arguments: str, answer: str | None = None, **variables: str) -> Done:
        return run_command(settings, tmp_path, *arguments, answer=answer, **variables)

    return command


@pytest.fixture
def finished(database: Database, migration: Migration) -> Database:
    fill_and_swap(migration)
    retire(migration)
    return database


@pytest.fixture
def swapped(database: Database, migration: Migration) -> Database:
    fill_and_swap(migration)
    return database


@pytest.fixture
def went_back(swapped: Database, settings: Settings) -> Database:
    rollback(Migration(swapped, settings))
    return swapped


def table(database: Database) -> Any:
    """All that an unwanted migration would change: schema, notes, indexes, trigger, and the vectors that search reads."""
    return schema_of(database), execute(database, "SELECT id, embedding::text FROM segments ORDER BY id")


def words(text: str) -> str:
    return " ".join(text.split())


class TestTheNextMigration:
    def test_a_missing_variable_in_cron_moves_nothing(self, run: Run, finished: Database) -> None:
        execute(finished, "INSERT INTO segments_embedding_quarantine VALUES (5, 'too hard', now())")
        execute(finished, "UPDATE segments SET embedding = NULL WHERE id = 5")
        before = table(finished)

        refused = run("migrate", "--retry-quarantined", **NEXT_MODEL)

        assert refused.returncode == 2
        assert table(finished) == before
        assert execute(finished, "SELECT row_id::int FROM segments_embedding_quarantine") == [(5,)]
        said = words(refused.stderr)
        assert "hashing (384 dimensions" in said
        assert "hashing (256 dimensions" in said
        assert "State: nothing was changed" in said
        assert "--yes" in said
        assert "BEGIN_NEXT_MIGRATION=hashing" in said
        assert "Traceback" not in said

    @pytest.mark.parametrize("consent", ["--yes", "BEGIN_NEXT_MIGRATION"])
    def test_consent_without_a_terminal_begins_it(
        self, run: Run, finished: Database, settings: Settings, consent: str
    ) -> None:
        given = {} if consent == "--yes" else {consent: "hashing"}
        arguments = ["--yes"] if consent == "--yes" else []

        done = run("migrate", *arguments, QUALITY_GATE="off", **NEXT_MODEL, **given)

        assert done.returncode == 0, done.stderr
        assert read_status(Migration(finished, settings)).dimensions == 256

    def test_a_terminal_is_shown_what_would_happen_and_no_leaves_everything(self, run: Run, finished: Database) -> None:
        before = table(finished)

        declined = run("migrate", answer="n", OLD_INDEX="drop", **NEXT_MODEL)

        assert declined.returncode == 1
        assert table(finished) == before
        said = words(declined.stderr)
        for essential in (
            "from hashing, 384 dimensions",
            "to hashing, 256 dimensions",
            "rows 300, of which 300 are to be embedded",
            "backfill ",
            "texts/s measured here",
            "dropped segments_embedding_idx",
            "search reads the whole table (OLD_INDEX=drop)",
            "this begins another one",
        ):
            assert essential in said
        assert declined.stdout == ""

    def test_yes_at_a_terminal_begins_it_and_standard_output_stays_one_json_object(
        self, run: Run, finished: Database, settings: Settings
    ) -> None:
        done = run("migrate", "--json", answer="y", QUALITY_GATE="off", **NEXT_MODEL)

        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["swap"]["exchanged"]
        assert read_status(Migration(finished, settings)).dimensions == 256

    @pytest.mark.usefixtures("finished")
    def test_plan_says_that_it_will_ask(self, run: Run) -> None:
        assert json.loads(run("plan", "--json", **NEXT_MODEL).stdout)["step"] == "next"
        assert "begins the next migration and therefore asks" in words(run("plan", **NEXT_MODEL).stdout)


class TestAFirstMigration:
    def test_asks_at_a_terminal(self, run: Run, database: Database) -> None:
        before = table(database)

        declined = run("migrate", answer="n", OLD_INDEX="drop")

        assert declined.returncode == 1
        assert table(database) == before
        said = words(declined.stderr)
        assert "This begins the migration of a live table. Go on?" in said
        assert f"database {str(database)[:30]}" in said
        assert f"/{database.url.database}" in declined.stderr.replace("\n", "").replace(" ", "")
        assert "stand-in for Alibaba-NLP/gte-Qwen2-1.5B-instruct (hashed words, not a model), 1536 dimensions" in said
        assert "dropped segments_embedding_idx" in said

    def test_begins_by_yes_without_a_question(self, run: Run, migration: Migration) -> None:
        done = run("migrate", "--yes", answer="n", QUALITY_GATE="off")

        assert done.returncode == 0, done.stderr
        assert "Go on?" not in done.stderr
        assert read_status(migration).phase == "swapped"

    def test_that_is_under_way_is_resumed_without_a_question(self, run: Run, migration: Migration) -> None:
        expand(migration, ENCODER.space)

        done = run("migrate", answer="n", QUALITY_GATE="off")

        assert done.returncode == 0, done.stderr
        assert read_status(migration).phase == "swapped"


class TestEmbed:
    def test_embeds_what_is_pending_and_nothing_else(self, run: Run, finished: Database) -> None:
        schema = schema_of(finished)
        execute(finished, "UPDATE segments SET text = 'changed' WHERE id <= 3")

        done = run("embed", "--json")

        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["rows"], result["pending_after"], result["column"]) == (3, 0, "embedding")
        assert wrong_vectors(finished, ENCODER, "embedding") == []
        assert schema_of(finished) == schema
        assert "nothing was pending" in run("embed").stdout

    def test_refuses_the_settings_of_another_model(self, run: Run, finished: Database) -> None:
        execute(finished, "UPDATE segments SET text = 'changed' WHERE id <= 3")
        before = table(finished)

        refused = run("embed", "--retry-quarantined", **NEXT_MODEL)

        assert refused.returncode == 3
        assert "nothing was written" in refused.stderr
        assert table(finished) == before

    def test_does_not_begin_a_migration(self, run: Run, database: Database) -> None:
        before = table(database)

        refused = run("embed")

        assert refused.returncode == 3
        assert "has no column to fill yet" in refused.stderr
        assert table(database) == before

    def test_fills_the_new_column_before_the_swap_and_does_not_swap(
        self, run: Run, database: Database, migration: Migration
    ) -> None:
        expand(migration, ENCODER.space)
        before = table(database)

        assert json.loads(run("embed", "--json").stdout)["rows"] == 300

        (schema, searched), after = before, table(database)
        assert searched == after[1]
        assert set(schema) <= set(after[0]), "and an index of what is pending from now on"
        assert read_status(migration).phase == "backfilled"

    def test_keeps_the_new_vectors_current_after_a_rollback_and_goes_no_further(
        self, run: Run, went_back: Database
    ) -> None:
        execute(went_back, "UPDATE segments SET text = 'changed' WHERE id = 1")
        before = table(went_back)

        assert json.loads(run("embed", "--json").stdout)["rows"] == 1

        assert table(went_back) == before
        assert pending_ids(went_back) == []

    def test_tries_quarantined_rows_again_when_it_is_told_to(self, run: Run, finished: Database) -> None:
        put_in_quarantine(finished, 5)
        execute(finished, "UPDATE segments SET embedding = NULL WHERE id = 5")

        assert json.loads(run("embed", "--json").stdout)["rows"] == 0
        assert json.loads(run("embed", "--json", "--retry-quarantined").stdout)["rows"] == 1


class TestRollback:
    def test_of_a_live_column_wants_yes_where_nobody_can_be_asked(self, run: Run, swapped: Database) -> None:
        before = table(swapped)

        refused = run("rollback")

        assert refused.returncode == 2
        assert "exchanges the columns of the live table" in words(refused.stderr)
        assert "--yes" in refused.stderr
        assert table(swapped) == before

    @pytest.mark.parametrize(("answer", "code", "dimensions"), [("n", 1, 384), ("y", 0, 1536)])
    def test_asks_at_a_terminal(
        self, run: Run, swapped: Database, settings: Settings, answer: str, code: int, dimensions: int
    ) -> None:
        assert run("rollback", answer=answer).returncode == code
        assert read_status(Migration(swapped, settings)).dimensions == dimensions

    def test_asks_once_for_both_before_it_discards(self, run: Run, swapped: Database, settings: Settings) -> None:
        before = table(swapped)
        declined = run("rollback", "--discard", answer="n")
        assert (declined.returncode, table(swapped)) == (1, before)
        assert "and drops the new column with the vectors in it" in words(declined.stderr)

        assert run("rollback", "--discard", answer="y").returncode == 0
        assert read_status(Migration(swapped, settings)).phase == "legacy"

    def test_twice_does_not_drop_the_new_vectors(self, run: Run, swapped: Database, settings: Settings) -> None:
        assert run("rollback", "--yes").returncode == 0
        before = table(swapped)

        again = run("rollback", "--yes")

        assert again.returncode == 0
        assert "already, nothing was changed" in words(again.stderr)
        assert table(swapped) == before
        assert read_status(Migration(swapped, settings)).embedded == 300


class TestRetire:
    def test_wants_yes_to_lock_a_retired_table_while_it_is_rewritten(self, run: Run, finished: Database) -> None:
        file = "SELECT pg_relation_filenode('segments')"
        before = execute(finished, file)

        refused = run("retire", "--reclaim")

        assert refused.returncode == 2
        assert "locks readers and writers out" in words(refused.stderr)
        assert "while it is rewritten" in words(refused.stderr)
        assert execute(finished, file) == before
        assert run("retire").returncode == 0, "there is nothing to ask"
        assert run("retire", "--reclaim", "--yes").returncode == 0
        assert execute(finished, file) != before

    def test_names_both_in_one_question(self, run: Run, swapped: Database) -> None:
        before = table(swapped)
        declined = run("retire", "--reclaim", answer="n")
        assert (declined.returncode, table(swapped)) == (1, before)
        assert "drops 'embedding_1536'" in words(declined.stderr)
        assert "locks readers and writers out" in words(declined.stderr)


class TestAfterARollback:
    def test_cron_does_not_go_forward(self, run: Run, went_back: Database, settings: Settings) -> None:
        before, when = table(went_back), read_status(Migration(went_back, settings)).rolled_back

        for _ in range(2):
            refused = run("migrate")
            assert refused.returncode == 2
            assert f"was rolled back to the old vectors at {when}" in words(refused.stderr)
            assert f"FORWARD_AFTER_ROLLBACK={when}" in words(refused.stderr)

        assert table(went_back) == before

    @pytest.mark.usefixtures("went_back")
    def test_status_says_so(self, run: Run) -> None:
        moment = json.loads(run("status", "--json").stdout)["rolled_back"]
        said = words(run("status").stdout)
        assert f"rolled back {moment}" in said
        assert "rollback --discard" in said

    @pytest.mark.parametrize("consent", ["--yes", "FORWARD_AFTER_ROLLBACK"])
    def test_consent_without_a_terminal_goes_forward(
        self, run: Run, went_back: Database, settings: Settings, consent: str
    ) -> None:
        when = read_status(Migration(went_back, settings)).rolled_back
        assert when is not None
        given = {} if consent == "--yes" else {consent: when}
        arguments = ["--yes"] if consent == "--yes" else []

        done = run("migrate", *arguments, QUALITY_GATE="off", **given)

        assert done.returncode == 0, done.stderr
        status = read_status(Migration(went_back, settings))
        assert (status.phase, status.rolled_back) == ("swapped", None)

    @pytest.mark.parametrize(("answer", "phase"), [("n", "backfilled"), ("y", "swapped")])
    def test_a_terminal_is_asked(
        self, run: Run, went_back: Database, settings: Settings, answer: str, phase: str
    ) -> None:
        done = run("migrate", answer=answer, QUALITY_GATE="off")

        assert "this goes forward again" in words(done.stderr)
        assert require_table(Migration(went_back, settings)).phase == phase
