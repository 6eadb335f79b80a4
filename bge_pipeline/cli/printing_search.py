"""What a search found, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from bge_pipeline.cli.printing import stdout
from bge_pipeline.database.ids import id_as_text

if TYPE_CHECKING:
    from bge_pipeline.search import SearchResponse, SearchResult


def print_search(response: SearchResponse, *, explain: bool) -> None:
    """Ranked text with scores; with `explain`, where each comes from, and below how it was searched."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for rank, found in enumerate(response.results, start=1):
        origin = (f"\n{_origin(found)}", "dim") if explain else ""
        table.add_row(
            str(rank), f"{found.score:.3f}", Text.assemble((f"[{id_as_text(found.id)}] ", "dim"), found.text, origin)
        )
    stdout.print(table if response.results else "nothing found")
    if explain:
        stdout.print()
        stdout.print(Text(response.explanation))


def _origin(found: SearchResult) -> str:
    """By what a row was found, and what put it in its place."""
    parts = []
    if found.dense_rank is not None:
        parts.append(f"no. {found.dense_rank} by meaning (distance {found.distance:.3f})")
    if found.lexical_rank is not None:
        parts.append(f"no. {found.lexical_rank} by words (BM25 {found.lexical_score:.2f})")
    if found.rerank_score is not None:
        parts.append(f"reranked {found.rerank_score:.3f}")
    return ", ".join(parts)
