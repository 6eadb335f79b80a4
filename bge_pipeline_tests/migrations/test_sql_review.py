"""What `alembic upgrade head --sql` prints: squawk finds nothing, psql runs it as it stands, and it refuses what swap refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command

from bge_pipeline.database.connection import Database
from bge_pipeline.database.operator import operating
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.roads import ROOT, alembic_config, environment, run_psql, schema
from bge_pipeline_tests.support import (
    ENCODER,
    as_it_stands,
    execute,
    fill,
    fill_and_swap,
    schema_of,
    statements_run_by,
    swap,
)

pytestmark = pytest.mark.pgvector


def printed(settings, capsys, monkeypatch, revisions="head", **variables):
    for name, value in environment(settings, INDEX_LISTS="1", **variables).items():
        monkeypatch.setenv(name, value)
    command.upgrade(alembic_config(), revisions, sql=True)
    return capsys.readouterr().out


@pytest.mark.parametrize("old_embedding", ["keep", "drop"])
@pytest.mark.parametrize("index_method", ["ivfflat", "hnsw"])
def test_squawk_finds_nothing(settings, capsys, monkeypatch, tmp_path, index_method, old_embedding):
    script = tmp_path / "review.sql"
    script.write_text(printed(settings, capsys, monkeypatch, INDEX_METHOD=index_method, OLD_EMBEDDING=old_embedding))
    squawk = Path(sys.executable).with_name("squawk")
    arguments = [str(squawk), "--config", str(ROOT / ".squawk.toml"), "--reporter", "gcc", str(script)]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (found.stdout, found.returncode) == ("", 0), found.stderr


def test_squawk_would_find_an_index_that_blocks_writers(settings, capsys, monkeypatch, tmp_path):
    script = tmp_path / "review.sql"
    script.write_text(printed(settings, capsys, monkeypatch).replace("INDEX CONCURRENTLY", "INDEX"))
    squawk = Path(sys.executable).with_name("squawk")
    arguments = [str(squawk), "--config", str(ROOT / ".squawk.toml"), "--reporter", "gcc", str(script)]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert "require-concurrent-index-creation" in found.stdout


@pytest.mark.parametrize("old_embedding", ["keep", "drop"])
def test_psql_runs_it_as_it_stands_on_an_empty_copy_of_the_schema(
    new_database_url, make_settings, capsys, monkeypatch, old_embedding
):
    by_hand, by_command = new_database_url(), new_database_url()
    choices = {"index_lists": 1, "old_embedding": old_embedding}
    script = printed(make_settings(), capsys, monkeypatch, OLD_EMBEDDING=old_embedding)
    with Database(by_hand) as empty, Database(by_command) as other:
        for database in (empty, other):
            execute(database, "TRUNCATE segments")
            execute(database, "COMMENT ON COLUMN segments.embedding IS NULL")  # the model, which no script knows
        done = run_psql(script, by_hand)
        assert done.returncode == 0, done.stderr
        assert read_status(Migration(empty, make_settings(database_url=by_hand))).phase in ("swapped", "retired")
        fill_and_swap(Migration(other, make_settings(database_url=by_command, **choices)))
        assert without_effort(schema(empty)) == without_effort(schema(other))


def without_effort(found):
    """A schema but for what the command asks the database for: the search effort, and the old vector index's name."""
    named = re.compile(r"(INDEX )\S+( ON \S+ USING ivfflat)")
    indexes = sorted((named.sub(r"\1its name\2", definition), valid) for definition, valid in found["indexes"])
    return re.sub(r', "search": \{[^}]*\}', "", str(found | {"indexes": indexes}))


def test_it_exchanges_nothing_while_rows_are_pending(migration, settings, capsys, monkeypatch):
    script = printed(settings, capsys, monkeypatch)
    done = run_psql(script, settings.database_url.get_secret_value())
    assert done.returncode != 0
    assert 'rows of "public"."segments" are pending (SWAP_MAX_PENDING_ROWS): nothing was exchanged' in done.stderr
    status = read_status(migration)
    assert (status.phase, status.dimensions, status.pending) == ("expanded", 1536, 300)


def test_it_exchanges_nothing_while_the_index_is_not_valid(migration, settings, capsys, monkeypatch):
    fill(migration)
    script = printed(settings, capsys, monkeypatch, "006:007")
    invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"%s\"'::regclass;\nBEGIN;\n\nSET LOCAL"
    index = re.search(r'CREATE INDEX CONCURRENTLY "([^"]+ivfflat)"', script).group(1)
    done = run_psql(script.replace("BEGIN;\n\nSET LOCAL", invalid % index), settings.database_url.get_secret_value())
    assert "is not valid: nothing was exchanged" in done.stderr
    assert read_status(migration).dimensions == 1536


def test_it_waits_for_nobody_longer_than_the_command_does(database, make_settings, capsys, monkeypatch):
    settings = make_settings(index_lists=1)
    script = printed(settings, capsys, monkeypatch, LOCK_TIMEOUT_MS="200")
    bounds = re.compile(r"SET LOCAL (?:lock|statement)_timeout = '\d+ms'")
    live = statements_run_by(lambda: expand(Migration(database, settings), ENCODER.space))
    for_expand = [found for statement in live for found in bounds.findall(statement)]
    fill(Migration(database, settings))
    live = statements_run_by(lambda: swap(Migration(database, settings)))
    for_swap = [found for statement in live for found in bounds.findall(statement) if "300ms" not in found]
    assert set(for_expand) == set(bounds.findall(script))
    assert set(for_expand) <= set(for_swap)
    assert bounds.findall(script) == [*for_expand[:4], *for_expand[:4]]


def test_it_gives_way_to_an_operator_at_work(database, settings, capsys, monkeypatch):
    script = printed(settings, capsys, monkeypatch)
    before = schema_of(database)
    with operating(database, settings, "expand"):
        done = run_psql(script, settings.database_url.get_secret_value())
    assert "canceling statement due to lock timeout" in done.stderr
    after = [row for row in schema_of(database) if row[0] != "bge_pipeline_alembic_version"]
    assert after == before


@pytest.fixture
def refused(settings, database, capsys, monkeypatch):
    """Runs a script of revisions that Alembic's books await; sees that it fails at what it expects, and changes nothing."""

    def run(revisions, **variables):
        script = printed(settings, capsys, monkeypatch, revisions, **variables)
        command.stamp(alembic_config(), revisions[:3])
        before = schema_of(database)
        done = run_psql(script, settings.database_url.get_secret_value())
        assert done.returncode != 0
        assert 'a column of "public"."segments" is not what this script expects' in done.stderr
        assert schema_of(database) == before
        return done.stderr

    return run


@pytest.mark.parametrize("revisions", ["004:005", "006:007"])
def test_it_takes_no_column_of_another_model_for_its_own(migration, refused, revisions):
    expand(migration, replace(ENCODER.space, model="another", revision="sha256:0123456789abcdef"))
    assert "embedding_384: " in refused(revisions)


def test_it_takes_no_column_of_the_users_own(database, refused):
    execute(database, "ALTER TABLE segments ADD embedding_384 vector(384)")
    assert "embedding_384: no comment" in refused("004:005")


def test_it_begins_nothing_beside_a_migration_to_other_dimensions(migration, refused):
    expand(migration, ENCODER.space)
    assert "embedding_384: " in refused("004:005", EMBEDDING_DIMENSIONS="256")


@pytest.mark.parametrize("revisions", ["004:005", "006:007"])
def test_it_begins_no_next_migration(migration, refused, revisions):
    fill_and_swap(migration)
    retire(migration)
    assert "embedding: " in refused(revisions, EMBEDDING_DIMENSIONS="256")


def test_it_ends_no_next_migration(migration, refused, make_settings):
    fill_and_swap(migration)
    retire(migration)
    next_one = make_settings(embedding_dimensions=256, begin_next_migration="hashing")
    fill(Migration(migration.database, next_one), HashingEncoder(256))
    assert "embedding: " in refused("006:007", EMBEDDING_DIMENSIONS="256")


@pytest.mark.parametrize("revisions", ["004:005", "006:007"])
def test_it_does_not_go_forward_after_a_rollback(migration, refused, revisions):
    fill_and_swap(migration)
    assert rollback(migration).rolled_back in refused(revisions)


def test_it_forgets_no_index_that_expand_dropped(database, make_settings, refused):
    fill(Migration(database, make_settings(old_index="drop")))
    for revisions in ("004:005", "006:007"):
        assert "dropped_indexes" in refused(revisions)


def test_of_two_columns_of_the_same_dimensions_the_old_one_does_not_come_back(
    migration, database, settings, refused, capsys, monkeypatch
):
    cut = "('[' || array_to_string((embedding::real[])[1:384], ',') || ']')::vector(384)"
    as_it_stands(database, f"ALTER TABLE segments ALTER embedding TYPE vector(384) USING {cut}")
    fill(migration)
    script = printed(settings, capsys, monkeypatch, "006:007", LEGACY_DIMENSIONS="384")
    command.stamp(alembic_config(), "006")
    done = run_psql(script, settings.database_url.get_secret_value())
    assert done.returncode == 0, done.stderr
    vectors = execute(database, "SELECT id, embedding::text FROM segments ORDER BY id")
    assert '"role": "previous"' in refused("006:007", LEGACY_DIMENSIONS="384")
    assert execute(database, "SELECT id, embedding::text FROM segments ORDER BY id") == vectors


def test_its_expand_may_be_repeated(database, settings, capsys, monkeypatch):
    script = printed(settings, capsys, monkeypatch, "004:005")
    for _ in range(2):
        command.stamp(alembic_config(), "004")
        done = run_psql(script, settings.database_url.get_secret_value())
        assert done.returncode == 0, done.stderr
    assert read_status(Migration(database, settings)).phase == "expanded"
