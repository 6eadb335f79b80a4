"""The demo table after expand, on an embedded server that lasts as long as a benchmark needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import load_settings


@contextmanager
def expanded_table(rows: int) -> Iterator[Migration]:
    """So many rows with old vectors, no index on these, the new column empty; the encoder is hashed words."""
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-", ignore_cleanup_errors=True) as home:
        settings = load_settings(bge_pipeline_home=home, embedding_model="hashing", old_index="keep")
        with Database.from_settings(settings) as database:
            create_demo_table(database, settings, rows, with_index=False)
            migration = Migration(database, settings)
            expand(migration, configured_space(settings))
            yield migration
