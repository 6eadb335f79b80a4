"""SegmentsDatabase connects where the same URL takes everything else."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import URL

from bge_pipeline.compat.connections import ThreadConnections
from bge_pipeline.database.connection import normalise_url

pytestmark = pytest.mark.pgvector


def shown(url: URL, name: str) -> str:
    connections = ThreadConnections(normalise_url(url.render_as_string(hide_password=False)))
    try:
        with connections.get() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_setting(%s)", (name,))
            return cursor.fetchone()[0]
    finally:
        connections.close()


def test_values_of_parameters_may_have_spaces(database_url: str) -> None:
    url = normalise_url(database_url).update_query_dict({"options": "-c search_path=app -c work_mem=5MB"})
    assert (shown(url, "search_path"), shown(url, "work_mem")) == ("app", "5MB")


def test_of_several_hosts_the_first_that_answers_is_taken(database_url: str) -> None:
    url = normalise_url(database_url)
    host, port = url.query.get("host") or url.host, url.query.get("port") or url.port or 5432
    both = url.set(host=None, port=None).difference_update_query(["host", "port"])
    both = both.update_query_dict({"host": (f"{host}:{port}", "/nowhere:5432")})
    assert shown(both, "client_encoding") == "UTF8"


def test_an_encoding_in_the_url_is_the_connections(database_url: str) -> None:
    url = normalise_url(database_url).update_query_dict({"client_encoding": "LATIN1"})
    assert shown(url, "client_encoding") == "LATIN1"
