"""An embedded server with the memory that PostgreSQL's manual advises, instead of what `initdb` leaves for any machine.

With initdb's 128 MB an index of vectors does not fit: what is measured then is how fast pages come back from the operating
system's cache while a tool writes.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from psutil import virtual_memory
from psycopg2 import sql
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import normalise_url
from bge_pipeline.database.local_server import start_embedded_server


def advised_settings() -> dict[str, str]:
    """A quarter of the memory for pages, and room for the log of a bulk load.

    Sources: the chapters "Resource Consumption" and "Populating a Database" of PostgreSQL's manual.
    """
    return {"shared_buffers": f"{virtual_memory().total // 4 // 2**20}MB", "max_wal_size": "8GB"}


def add_server_argument(parser: ArgumentParser) -> None:
    """Take `--server NAME=VALUE` as often as it is given, for `start_tuned_server`."""
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the embedded server, which has a quarter of the memory as shared_buffers by default",
    )


def start_tuned_server(data_folder: Path, assignments: Sequence[str] = ()) -> URL:
    """Start it with the advised settings, and with further ones as NAME=VALUE, which win."""
    server = start_embedded_server(data_folder)
    settings = advised_settings() | dict(assignment.split("=", 1) for assignment in assignments)
    with _cursor(server.get_uri()) as cursor:
        for name, value in settings.items():
            cursor.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    server.stop()
    server.start()
    return normalise_url(server.get_uri())


def shown_settings(server: URL) -> str:
    """What memory the server has, in words."""
    found = []
    with _cursor(server.set(drivername="postgresql").render_as_string(hide_password=False)) as cursor:
        for name in advised_settings():
            cursor.execute(sql.SQL("SHOW {}").format(sql.Identifier(name)))
            found.append(f"{cursor.fetchone()[0]} of {name}")
    return " and ".join(found)


@contextmanager
def _cursor(url: str) -> Iterator[psycopg2.extensions.cursor]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
