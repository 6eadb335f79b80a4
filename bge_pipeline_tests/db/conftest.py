"""A segments table whose column is being filled, without the phases that would make it so."""

from __future__ import annotations

import pytest

from bge_pipeline.database.quarantine import quarantine_statements
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute


@pytest.fixture
def expanded(database, migration):
    """The demo table in phase expanded."""
    from bge_pipeline.phases.expand import expand

    expand(migration, ENCODER.space)
    return database


@pytest.fixture
def column(database):
    """A small table `notes` with an empty column `v` of two dimensions and its quarantine; returns its target."""
    from dataclasses import replace

    execute(database, "CREATE TABLE notes (id bigint PRIMARY KEY, text text, v vector(2))")
    target = replace(SEGMENTS, table="notes", embedding_column="v")
    with database.transaction() as connection:
        for statement in quarantine_statements(target):
            connection.execute(statement)
    return target
