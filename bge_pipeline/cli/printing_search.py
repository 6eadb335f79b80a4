"""What a search found, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from bge_pipeline.cli.printing import stdout

if TYPE_CHECKING:
    from bge_pipeline.search import SearchResponse, SearchResult


def print_search(response: SearchResponse, *, explain: bool) -> None:
    """Ranked text with scores; with `explain`, where each comes from, and below how it was searched."""
    for rank, found in enumerate(response.results, start=1):
        stdout.print(
            Text.assemble(
                (f"{rank:3} ", "bold"), (f"{found.score:.3f} ", "cyan"), (f"[{found.id}] ", "dim"), found.text
            )
        )
        if explain:
            stdout.print(Text(f"    {_origin(found)}", style="dim"))
    if not response.results:
        stdout.print("nothing found")
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
