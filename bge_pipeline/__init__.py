"""Change the embedding model behind a live pgvector table: plan, backfill, verify, swap, roll back.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_pipeline.compat.embedding_generator import EmbeddingGenerator
    from bge_pipeline.compat.segments_database import SegmentsDatabase
    from bge_pipeline.embedding.service import EmbeddingsService
    from bge_pipeline.search import Retriever

__all__ = ["EmbeddingGenerator", "EmbeddingsService", "Retriever", "SegmentsDatabase"]

_HOMES = {
    "EmbeddingGenerator": "bge_pipeline.compat.embedding_generator",
    "EmbeddingsService": "bge_pipeline.embedding.service",
    "Retriever": "bge_pipeline.search",
    "SegmentsDatabase": "bge_pipeline.compat.segments_database",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
