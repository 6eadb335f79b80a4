"""Dagster, Alembic and the command end in the same schema and the same vectors."""

from collections.abc import Callable

import pytest
from alembic import command
from pydantic import SecretStr

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.in_process import migrate_through_dagster
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import alembic_config, schema, vectors

pytestmark = pytest.mark.pgvector


@pytest.mark.thorough
def test_the_three_roads_end_in_the_same_table(
    settings: Settings, database: Database, new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_through_dagster(settings)

    alembic_url, command_url = new_database_url(), new_database_url()
    monkeypatch.setenv("DATABASE_URL", alembic_url)
    command.upgrade(alembic_config(), "head")
    by_command = settings.model_copy(update={"database_url": SecretStr(command_url)})
    with Database(command_url) as other, open_service(Migration(other, by_command)) as service:
        migrate(Migration(other, by_command), service)

    for url in (alembic_url, command_url):
        with Database(url) as other:
            assert schema(other) == schema(database)
            assert vectors(other) == vectors(database)
