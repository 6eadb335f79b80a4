"""What plain SQL finds at the server's settings: measured, held against what it found before, and mended on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.engine import make_url

from bge_pipeline.database.connection import Database
from bge_pipeline.database.role_settings import read_role_setting
from bge_pipeline.database.sql import quote
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.swap import swap
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import ENCODER, SEGMENTS, agreed, execute, fill, scalar

pytestmark = pytest.mark.pgvector

INDEX = "segments_embedding_idx"
MakeSettings = Callable[..., Settings]


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """An application's role."""
    name = "application_" + make_url(str(database.url)).database.rpartition("_")[2]
    execute(database, f"CREATE ROLE {name}")
    yield name
    execute(database, f"DROP OWNED BY {name}")
    execute(database, f"DROP ROLE {name}")


@pytest.fixture
def many_lists(database: Database, make_settings: MakeSettings) -> MakeSettings:
    """Search was by HNSW, and the new index is IVFFlat with so many lists that one probe misses much."""
    execute(database, f"DROP INDEX {INDEX}")
    execute(database, f"CREATE INDEX {INDEX} ON segments USING hnsw (embedding vector_cosine_ops)")

    def make(**overrides: object) -> Settings:
        return make_settings(index_method="ivfflat", index_lists=30, **overrides)

    return make


def filled(database: Database, settings: Settings) -> tuple[Settings, EmbeddingsService]:
    fill(Migration(database, settings))
    settings = agreed(Migration(database, settings))
    return settings, EmbeddingsService(ENCODER, settings)


def plain_probes(database: Database, role: str | None = None) -> int:
    with database.autocommit() as connection:
        return read_role_setting(connection, SEGMENTS, "ivfflat.probes", role).value


def test_less_than_before_is_refused_with_the_statement_that_mends_it(database, many_lists):
    settings, service = filled(database, many_lists())

    with pytest.raises(SwapRefused) as refused:
        swap(Migration(database, settings), service)

    name = scalar(database, "SELECT current_database()")
    assert "- server_recall: " in refused.value.message
    assert "- ann_recall: " not in refused.value.message, "Retriever's own searches find enough"
    assert f'ALTER DATABASE "{name}" SET ivfflat.probes = ' in refused.value.message
    statement = refused.value.message.partition("sessions to come: ")[2].partition(";")[0]

    execute(database, statement)

    result = swap(Migration(database, settings), service)
    (check,) = (check for check in result.gate.checks if check.name == "server_recall")
    assert check.passed
    assert check.value > 0.95
    assert check.bound == 0.95
    assert f"ivfflat.probes = {statement.rpartition(' ')[2]}, as the server has it" in check.explanation


def test_it_is_set_where_that_is_asked_for(database, many_lists):
    settings, service = filled(database, many_lists(server_search_effort="set"))
    assert plain_probes(database) == 1

    result = swap(Migration(database, settings), service)

    assert result.gate.passed
    assert plain_probes(database) > 5


def test_an_application_that_sets_its_own_is_not_asked(database, many_lists):
    settings, service = filled(database, many_lists(server_search_effort="ignore"))
    result = swap(Migration(database, settings), service)
    assert [check.value for check in result.gate.checks if check.name == "server_recall"] == [None]
    assert plain_probes(database) == 1


def test_what_missed_as_much_before_is_no_reason_to_refuse(database, make_settings):
    execute(database, f"DROP INDEX {INDEX}")
    execute(database, f"CREATE INDEX {INDEX} ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 60)")
    settings, service = filled(database, make_settings(index_lists=30))

    result = swap(Migration(database, settings), service)

    (check,) = (check for check in result.gate.checks if check.name == "server_recall")
    assert check.passed
    assert check.value < 0.95
    assert "before 0." in check.explanation


def test_the_role_of_the_application_is_asked_and_set(database, many_lists, role):
    name = scalar(database, "SELECT current_database()")
    execute(database, f"ALTER DATABASE {quote(name)} SET ivfflat.probes = 30")
    execute(database, f"ALTER ROLE {role} SET ivfflat.probes = 2")
    assert (plain_probes(database), plain_probes(database, role)) == (30, 2)
    settings, service = filled(database, many_lists(application_role=role))

    with pytest.raises(SwapRefused, match=f'ALTER ROLE "{role}" IN DATABASE "{name}" SET ivfflat.probes = '):
        swap(Migration(database, settings), service)

    assert swap(Migration(database, settings.model_copy(update={"server_search_effort": "set"})), service).gate.passed
    assert plain_probes(database, role) > 2


def test_a_statement_that_is_refused_is_a_warning_and_the_gate_judges(database, many_lists, monkeypatch, caplog):
    settings, service = filled(database, many_lists(server_search_effort="set"))
    monkeypatch.setattr(
        "bge_pipeline.quality.server_search.role_setting_statement", lambda *_: "ALTER ROLE nobody_there SET x.y = 1"
    )
    with pytest.raises(SwapRefused, match="server_recall"):
        swap(Migration(database, settings), service)
    assert 'role "nobody_there" does not exist' in caplog.text
