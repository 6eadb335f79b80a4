"""Included by a worker: from its import on backfills note what they encode, in a file that survives the worker's death."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bge_pipeline.phases.row_encoding import BatchEncoder, EncodedBatch, TokenizedBatch, UntokenizableBatch
from bge_pipeline_tests.fleet.encoded import FILE, SECONDS

_encode = BatchEncoder.encode


def _counted(encoder: BatchEncoder, tokenized: TokenizedBatch | UntokenizableBatch) -> EncodedBatch:
    with Path(os.environ[FILE]).open("a") as file:
        file.write(f"{len(tokenized.batch)}\n")
    time.sleep(float(os.environ.get(SECONDS, "0")))
    return _encode(encoder, tokenized)


BatchEncoder.encode = _counted  # type: ignore[method-assign]
