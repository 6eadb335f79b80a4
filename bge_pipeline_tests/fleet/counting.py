"""Included by a worker: from its import on the encoder notes what it encodes, in a file that survives the worker's death."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline_tests.fleet.encoded import FILE, SECONDS

_encode = HashingEncoder.encode


def _counted(encoder: HashingEncoder, tokens: Any, **options: Any) -> Any:
    with Path(os.environ[FILE]).open("a") as file:
        file.write(f"{len(tokens)}\n")
    time.sleep(float(os.environ.get(SECONDS, "0")))
    return _encode(encoder, tokens, **options)


HashingEncoder.encode = _counted  # type: ignore[method-assign]
