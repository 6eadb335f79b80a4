"""deploy/roles.sql gives each role what its part needs, and nothing more: psql runs it, and each logs in and tries."""

from __future__ import annotations

import os

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import MissingPrivilege
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.doctor import examine
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.roads import ROOT, run_psql
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute, fill_and_swap, scalar, swap

pytestmark = pytest.mark.pgvector

ROLES = ("bge_planner", "bge_filler")


@pytest.fixture
def logins(database, migration, database_url, server_url):
    """After expand and the script: a database that is logged in to as a member of each role."""
    expand(migration, ENCODER.space)
    for _ in range(2):  # it can be repeated
        done = run_psql(
            (ROOT / "deploy/roles.sql").read_text(), database_url, schema="public", table="segments", column="embedding"
        )
        assert done.returncode == 0, done.stderr
    opened, (name,) = {}, execute(database, "SELECT current_database()")[0]
    for role in ROLES:
        login = f"{role}_{os.getpid()}"
        execute(database, f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE {role}")
        url = server_url.set(username=login, password="x", database=name, drivername="postgresql")
        opened[role] = Database(url.render_as_string(hide_password=False))
    yield opened
    for role, other in opened.items():
        other.close()
        execute(database, f"DROP ROLE {role}_{os.getpid()}")
    for role in ROLES:
        execute(database, f"DROP OWNED BY {role}")


def test_who_plans_reads_and_can_change_nothing(logins, settings):
    planner = logins["bge_planner"]
    assert plan(Migration(planner, settings), EmbeddingsService(ENCODER, settings)).rows == 300
    assert read_status(Migration(planner, settings)).pending == 300
    assert examine(Migration(planner, settings)).content.rows == 300
    with pytest.raises(MissingPrivilege):
        backfill(Migration(planner, settings), ENCODER)


def test_who_fills_writes_vectors_and_cannot_swap(logins, migration, settings):
    filler = logins["bge_filler"]
    assert backfill(Migration(filler, settings), ENCODER).rows == 300
    with pytest.raises(MissingPrivilege):
        swap(Migration(filler, settings))
    assert swap(migration).exchanged


def test_who_fills_goes_on_with_a_journal_whose_index_only_its_owner_may_make(logins, migration, settings):
    filler, owner = logins["bge_filler"], migration.database
    index = f"SELECT count(*) FROM pg_indexes WHERE indexname = '{SEGMENTS.journal_index}'"
    fill_and_swap(migration)
    execute(owner, f"DROP INDEX {SEGMENTS.journal_index}")
    execute(owner, "UPDATE segments SET text = 'another text' WHERE id = 1")

    assert not expand(Migration(filler, settings), ENCODER.space).added
    assert backfill(Migration(filler, settings), ENCODER).rows == 1
    assert read_status(Migration(filler, settings)).workers == ()
    assert scalar(owner, index) == 0

    expand(migration, ENCODER.space)
    assert scalar(owner, index) == 1
