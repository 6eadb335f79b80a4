"""A backfill that is killed at any instant is finished by the next, and no row is embedded twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import ENCODER, pending_ids, scalar, wait_until, wrong_vectors
from bge_pipeline_tests.written import count_writes, written

pytestmark = pytest.mark.pgvector

BACKFILL = """
import time
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import load_settings

class Slow(HashingEncoder):
    def encode(self, tokens, *, batch_size=None):
        time.sleep(0.02)
        return super().encode(tokens)

with Migration.opened(load_settings()) as migration:
    backfill(migration, Slow())
"""


@pytest.mark.parametrize("instants", [(1,), (60, 140, 230)], ids=["at once", "three times"])
def test_every_row_is_embedded_exactly_once(database, make_settings, instants):
    settings = make_settings(backfill_batch_rows=10)
    expand(Migration(database, settings), ENCODER.space)
    count_writes(database)
    variables = environment(settings, BACKFILL_BATCH_ROWS="10")
    for instant in instants:
        process = subprocess.Popen([sys.executable, "-c", BACKFILL], env=variables)
        wait_until(lambda instant=instant: scalar(database, "SELECT count(*) FROM writes") >= instant, 60)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    wait_until(lambda: scalar(database, OTHERS) == 0)
    left = len(pending_ids(database))
    assert 0 < left <= 300 - instants[-1]
    assert backfill(Migration(database, settings), ENCODER).rows == left
    assert written(database) == (300, 300)
    assert wrong_vectors(database, ENCODER, "embedding_384") == []


OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
"""
