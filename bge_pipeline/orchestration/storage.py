"""Dagster's own records: dagster-postgres on DAGSTER_DATABASE_URL, or in a database of the embedded server."""

from collections.abc import Mapping
from typing import Any

from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from bge_pipeline.database.connection import Database, embedded_folder, normalise_url
from bge_pipeline.database.local_server import start_embedded_postgres
from bge_pipeline.errors import DatabaseUnavailable
from bge_pipeline.orchestration.dagster_tables import with_whole_tables
from bge_pipeline.settings import Settings, load_settings

DATABASE = "bge_pipeline_dagster"


class PipelineStorage(DagsterPostgresStorage):
    """dagster-postgres that finds its server by itself, so that every `dagster` command works with DAGSTER_HOME alone.

    No URL and no password is written to a file.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Nothing to configure: the environment says it."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: Any,
        config_value: Mapping[str, Any],  # noqa: ARG003
    ) -> "PipelineStorage":
        """The storage that the environment asks for."""
        url = dagster_database_url(load_settings())
        postgres_url = url.render_as_string(hide_password=False)
        return with_whole_tables(url, lambda: cls(inst_data=inst_data, postgres_url=postgres_url))


def dagster_database_url(settings: Settings) -> URL:
    """URL of the database for Dagster's records, with the driver that dagster-postgres needs.

    Raises:
        DatabaseUnavailable: DAGSTER_DATABASE_URL is not set and there is no embedded server.
    """
    if settings.dagster_database_url is not None:
        return normalise_url(settings.dagster_database_url.get_secret_value())
    try:
        server = normalise_url(start_embedded_postgres(embedded_folder(settings)))
    except DatabaseUnavailable as error:
        raise DatabaseUnavailable(
            f"Dagster has no database for its records: {error.message}",
            next_step="set DAGSTER_DATABASE_URL to an empty database, or pip install 'bge-pipeline[embedded]'",
        ) from error
    _create_database(server)
    return server.set(database=DATABASE)


def require_databases(settings: Settings) -> None:
    """Return if the database of the target table, where there is one table, and that of Dagster's records both answer.

    Raises:
        DatabaseUnavailable: which one does not, or (LoginRefused) lets nobody in.
    """
    if not settings.bge_pipeline_tables:
        with Database.from_settings(settings) as database:
            database.require_answer()
    with Database(dagster_database_url(settings)) as records:
        try:
            records.require_answer()
        except DatabaseUnavailable as error:
            raise type(error)(
                f"Dagster has no database for its records: {error.message}",
                next_step="check DAGSTER_DATABASE_URL and that the server takes connections",
            ) from error


def _create_database(server: URL) -> None:
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Two processes may get here at once; the lock makes the second one wait and see the database.
        connection.execute(text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": DATABASE})
        if (
            connection.execute(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": DATABASE}).first()
            is None
        ):
            connection.execute(text(f"CREATE DATABASE {DATABASE}"))
            # Every event of a run is a commit. What a power cut may lose here are log lines; the vectors are elsewhere.
            connection.execute(text(f"ALTER DATABASE {DATABASE} SET synchronous_commit = off"))
    engine.dispose()
