"""Fixtures of the search tests: the configured encoder, the old one, and the migration in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import legacy_encoder
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.search import Retriever
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import agreed


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(quality_gate="off")


@pytest.fixture
def service(settings: Settings) -> EmbeddingsService:
    return EmbeddingsService.from_settings(settings)


@pytest.fixture
def old_encoder(settings: Settings) -> HashingEncoder:
    return legacy_encoder(settings)


@pytest.fixture
def run_migration(database: Database, migration: Migration, service: EmbeddingsService) -> Callable[[], None]:
    """Migrates as somebody does who agrees to it, after a rollback too."""
    return lambda: migrate(Migration(database, agreed(migration)), service) and None


@pytest.fixture
def retriever(
    database: Database, settings: Settings, service: EmbeddingsService, old_encoder: HashingEncoder
) -> Retriever:
    """Both encoders at hand, as an application has them that runs through a swap."""
    return Retriever(database, settings, service, query_encoder=old_encoder)


@pytest.fixture
def statements(database: Database) -> Callable[[], Iterator[list[str]]]:
    """A context manager that collects the statements sent to the server."""

    @contextmanager
    def collect() -> Iterator[list[str]]:
        sent: list[str] = []

        def note(_connection, _cursor, statement, *_rest):
            sent.append(statement)

        event.listen(database.engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            event.remove(database.engine, "before_cursor_execute", note)

    return collect
