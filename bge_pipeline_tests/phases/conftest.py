"""What tests of several phases begin with."""

from __future__ import annotations

import pytest

from bge_pipeline_tests.support import fill


@pytest.fixture
def filled(database, migration):
    """The demo table in phase backfilled."""
    fill(migration)
    return database
