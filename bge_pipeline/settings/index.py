"""The new vector index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bge_pipeline.settings.group import Group


class IndexSettings(Group):
    """The new vector index."""

    index_method: Literal["auto", "ivfflat", "hnsw"] = Field(
        "auto", description="kind of the new vector index; auto: that of the old one, IVFFlat where there was none"
    )
    index_element: Literal["auto", "vector", "halfvec"] = Field(
        "auto",
        description="what the index stores: float32 or float16; auto: as the old one, float16 above 2,000 dimensions",
    )
    index_lists: int | None = Field(
        None, ge=1, le=32_768, description="IVFFlat lists; unset: rows/1000, above 1M rows sqrt(rows)"
    )
    index_m: int | None = Field(
        None, ge=2, le=100, description="HNSW connections per layer; unset: those of the old index, else 16"
    )
    index_ef_construction: int | None = Field(
        None, ge=4, le=1_000, description="HNSW candidate list while building; unset: that of the old index, else 64"
    )
    index_max_memory_mb: int | None = Field(
        None, ge=1, description="ceiling for maintenance_work_mem in the build's session"
    )
    index_build_workers: int | None = Field(
        None,
        ge=0,
        le=1_024,
        description="processes beside the first that may build the index; unset: the server's "
        "max_parallel_maintenance_workers, but of a server on this machine at most half of the processors",
    )
