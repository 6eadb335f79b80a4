"""A server that lacks what a migration needs is refused by its version, and one that no test ran on is named."""

from __future__ import annotations

import pytest

from bge_pipeline.database import tested_versions
from bge_pipeline.database.pgvector_version import require_version
from bge_pipeline.database.tested_versions import untested_versions
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline_tests.support import ENCODER, columns_of, execute

pytestmark = pytest.mark.pgvector


@pytest.fixture
def with_pgvector(database):
    """Has the catalog of the test's database say that another version of pgvector is installed."""

    def install(version):
        execute(database, "UPDATE pg_extension SET extversion = :version WHERE extname = 'vector'", version=version)

    return install


@pytest.mark.parametrize(
    ("version", "refused", "values", "instead"),
    [
        ("0.4.4", "INDEX_METHOD=hnsw: expected pgvector 0.5", {"index_method": "hnsw"}, "INDEX_METHOD=ivfflat"),
        ("0.6.2", "3,072 dimensions, more than 2,000: expected", {"embedding_dimensions": 3072}, "fewer dimensions"),
    ],
)
def test_what_an_old_pgvector_cannot_do_is_refused_with_what_to_set(
    database, make_settings, with_pgvector, version, refused, values, instead
):
    with_pgvector(version)
    with database.autocommit() as connection, pytest.raises(ConfigurationError, match=refused) as error:
        require_version(connection, make_settings(**values))
    assert f"got {version}" in error.value.message
    assert instead in error.value.next_step


@pytest.mark.parametrize("version", ["0.5.0", "0.5.1", "0.6.2", "0.7.4", "0.8.5"])
def test_an_index_of_the_ordinary_kinds_is_refused_by_no_version_that_has_it(
    database, make_settings, with_pgvector, version
):
    with_pgvector(version)
    for method in ("auto", "ivfflat", "hnsw"):
        with database.autocommit() as connection:
            require_version(connection, make_settings(index_method=method))


def test_nothing_is_changed_where_the_index_could_not_be_built(database, make_settings, with_pgvector):
    with_pgvector("0.4.4")
    with pytest.raises(ConfigurationError, match="INDEX_METHOD=hnsw"):
        expand(Migration(database, make_settings(index_method="hnsw")), ENCODER.space)
    assert "embedding_384" not in columns_of(database)


def test_plan_and_expand_name_a_version_that_no_test_ran_on(database, migration, with_pgvector, caplog, monkeypatch):
    with database.autocommit() as connection:
        assert untested_versions(connection) is None
    with_pgvector("0.4.4")
    service = EmbeddingsService(ENCODER, migration.settings)
    (told,) = [notice for notice in plan(migration, service).notices if "tests" in notice]
    assert told.startswith(
        "pgvector 0.4.4: the tests of this project ran on PostgreSQL 15 to 18 with pgvector 0.5 to 0.8"
    )
    expand(migration, ENCODER.space)
    assert told in caplog.messages

    with_pgvector("0.9.0")
    monkeypatch.setattr(tested_versions, "POSTGRES", (98, 99))
    major = execute(database, "SELECT current_setting('server_version_num')::int / 10000")[0][0]
    with database.autocommit() as connection:
        assert untested_versions(connection).startswith(f"PostgreSQL {major} and pgvector 0.9.0: the tests")
