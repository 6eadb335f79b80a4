"""The quality gate and the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from bge_pipeline.settings.group import Group, PlainName, QualifiedColumn


class QualitySettings(Group):
    """The bounds of the quality gate, and how much is measured."""

    quality_gate: Literal["enforce", "warn", "off"] = Field(
        "enforce",
        description="enforce: the swap is refused below the bounds; warn: it goes on and says so; off: not measured",
    )
    quality_min_ndcg_retained: float | None = Field(
        None, gt=0, description="least new nDCG@20 divided by old; unset: 0.92, with the reranker 0.95"
    )
    quality_min_ann_recall: float = Field(
        0.95, gt=0, le=1, description="least recall@20 of the index against exact search"
    )
    server_search_effort: Literal["check", "set", "ignore"] = Field(
        "check",
        description="check: the gate asks whether plain SQL, at the server's settings for APPLICATION_ROLE, finds as much as "
        "before; set: the swap sets there what the index needs, where it may; ignore: the application sets its own",
    )
    application_role: PlainName | None = Field(
        None, description="role by which the application searches; unset: the one in DATABASE_URL"
    )
    quality_min_read_whole: float = Field(
        0.5, ge=0, le=1, description="least share of texts that the model reads to their end"
    )
    quality_sample_rows: int = Field(1_000, ge=1, le=100_000, description="rows that the gate compares")
    quality_max_queries: int = Field(
        500, ge=1, description="labelled queries that the gate asks at most; with the reranker 50"
    )
    eval_queries: Path | None = Field(
        None,
        description='labelled queries, JSON Lines of {"query": ..., "relevant": {id: grade}}; unset: label-free evidence',
    )
    compare_queries: Path | None = Field(
        None,
        description="questions to search both columns for, side by side: one a line, or as in EVAL_QUERIES; unset: QUERY_LOG's",
    )
    query_log: QualifiedColumn | None = Field(
        None,
        description="schema.table.column in which the application keeps what people asked; unset: EVAL_QUERIES, else rows",
    )
    benchmark_texts: int = Field(5_000, ge=1, description="texts that the benchmark encodes at each batch size")
