"""What a candidate made of the texts, kept so that a second comparison of the same texts is cheap."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.quality.candidates import Task
from bge_pipeline.quality.label_free import Vectors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedTask:
    """Vectors of a task's passages and queries.

    Attributes:
        passages: float32 (n, d); zeros for a text that the model does not take.
        queries: float32 (m, d), likewise.
        seconds: what the passages took.
        cut_off: share of the passages that are longer than the model reads.
    """

    passages: Vectors
    queries: Vectors
    seconds: float
    cut_off: float

    @property
    def refused(self) -> int:
        """Passages and queries without a vector."""
        return sum(int((~vectors.any(axis=1)).sum()) for vectors in (self.passages, self.queries))


def cached(
    folder: Path, encoder: QueryEncoder, task: Task, embed: Callable[[], EmbeddedTask]
) -> tuple[EmbeddedTask, bool]:
    """What `embed` gives, and whether it is from an earlier time.

    Args:
        folder: where it is kept; files can be deleted at any time.
        encoder: its space, precision and device are part of the key.
        task: so are its texts and queries, every byte.
        embed: called where nothing is kept; where its vectors cannot be, they are given all the same.
    """
    path = folder / f"{_key(encoder, task)}.npz"
    try:
        with np.load(path) as kept:
            return EmbeddedTask(kept["passages"], kept["queries"], float(kept["seconds"]), float(kept["cut_off"])), True
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read and is made again: %s", path, error)
    made = embed()
    try:
        _keep(made, path)
    except OSError as error:
        logger.warning("%s cannot be written; another comparison embeds these texts again: %s", path, error)
    return made, False


def _keep(made: EmbeddedTask, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever compares at the same moment writes a file of its own, and the last one stays.
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, passages=made.passages, queries=made.queries, seconds=made.seconds, cut_off=made.cut_off)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _key(encoder: QueryEncoder, task: Task) -> str:
    digest = hashlib.sha256(f"{encoder.space.fingerprint} {encoder.space.precision} {encoder.device}".encode())
    for text in (*task.texts, "", *task.queries):
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()[:32]
