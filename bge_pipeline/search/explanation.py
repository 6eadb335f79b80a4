"""A search in words: what was searched, how thoroughly, and why the order is what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bge_pipeline.search.column import SearchedColumn
from bge_pipeline.search.results import SearchMode, StageSeconds
from bge_pipeline.search.scan import Session

_LONG_VECTOR = re.compile(r"\[[-+.,\de\s]{40,}\]")


def explain_search(
    searched: SearchedColumn,
    mode: SearchMode,
    session: Session,
    warnings: Sequence[str],
    candidates: int,
    reranked: bool,
    rerank_reason: str,
    seconds: StageSeconds,
    plan: Sequence[str],
) -> str:
    """The lines that a person reads; `plan` is shown with vectors shortened."""
    lines = [f"warning: {warning}" for warning in warnings]
    lines.append(f"{mode} search, {candidates} candidates")
    if mode != "lexical":
        lines += _dense_lines(searched, session)
    if mode != "dense":
        lines.append(
            f"words: {searched.text_config}, "
            + (
                "text index"
                if searched.has_text_index
                else "no text index, every text is read; bge-pipeline text-index makes one"
            )
        )
    lines.append(f"{'reranked' if reranked else 'not reranked'}: {rerank_reason}")
    lines.append(
        f"encode {seconds.encode * 1e3:.1f} ms, database {seconds.database * 1e3:.1f} ms, rerank {seconds.rerank * 1e3:.1f} ms"
    )
    return "\n".join([*lines, *(_LONG_VECTOR.sub("[...]", line) for line in plan)])


def _dense_lines(searched: SearchedColumn, session: Session) -> Iterator[str]:
    yield f"vectors: {searched}, {searched.column.full_type}, {searched.space or 'embedding space not recorded'}"
    if searched.index is None:
        yield "no ANN index: every row is compared"
    else:
        settings = ", ".join(f"{name}={value}" for name, value in session.items())
        yield f"index: {searched.index}; {settings or 'server defaults'}"
