"""Candidates for the next model side by side: a leaderboard, and a page of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.duration import duration
from bge_pipeline.quality.metrics import Difference
from bge_pipeline.report.pages import html_page, markdown_table
from bge_pipeline.report.plots import scatter
from bge_pipeline.report.sections import NOTHING, Headline, Section


@dataclass(frozen=True)
class Candidate:
    """One model on the texts of the table.

    Attributes:
        model: its name.
        is_current: whether it made the vectors that search reads now.
        precision, device: how and where it ran.
        dimensions: of its vectors.
        quality: mean over the queries, of what `ModelComparison.metric` says.
        against_best: its values minus those of the first of the leaderboard; None for that one.
        texts_per_second: passages embedded a second, here.
        table_seconds: what the whole table would take at that rate.
        cut_off: share of texts that are longer than the model reads.
        agreement: share of the 20 nearest neighbours that it and the vectors of today have in common, chance taken off;
            None where there are none of today.
        bytes_per_million: of a million rows' vectors and their HNSW index.
        cost_per_million: of a million texts, by EMBEDDING_PRICE_PER_MILLION tokens; None where nothing is paid or no price set.
        was_cached: whether its vectors and its rate are those of an earlier comparison.
        refused: texts and queries that it does not take, and which count as not found.
    """

    model: str
    is_current: bool
    precision: str
    device: str
    dimensions: int
    quality: float
    against_best: Difference | None
    texts_per_second: float
    table_seconds: float
    cut_off: float
    agreement: float | None
    bytes_per_million: int
    cost_per_million: float | None
    was_cached: bool
    refused: int = 0


@dataclass(frozen=True)
class ModelComparison:
    """The leaderboard, best quality first.

    Attributes:
        table: schema-qualified, quoted.
        metric: what quality is.
        texts, queries: how many of each every candidate was given.
        candidates: those that could be measured.
        failed: why others could not, by name.
    """

    table: str
    metric: str
    texts: int
    queries: int
    candidates: tuple[Candidate, ...]
    failed: dict[str, str]

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def notes(self) -> list[str]:
        """What to know of candidates that did not take every text."""
        return [
            f"{candidate.model} does not take {candidate.refused:,} of the texts and queries, which count as not found."
            for candidate in self.candidates
            if candidate.refused
        ]

    def rows(self) -> list[list[str]]:
        """The leaderboard as text, its head first."""
        head = [
            "model",
            self.metric,
            "against the first",
            "texts/s",
            "whole table",
            "dimensions",
            "GB a million",
            "cut off",
        ]
        head += ["neighbours as today", "a million texts cost"]
        return [head, *(_row(candidate) for candidate in self.candidates)]


def as_html(found: ModelComparison) -> str:
    """The leaderboard as one HTML file that needs no other."""
    best = found.candidates[0]
    fastest = max(found.candidates, key=lambda candidate: candidate.texts_per_second)
    sections = [Section("Leaderboard", found.rows(), _how_to_read(found))]
    if found.failed:
        sections.append(
            Section("Not measured", [["model", "why"], *([name, why] for name, why in found.failed.items())])
        )
    return html_page(
        f"Models for {found.table}",
        {"texts": f"{found.texts:,}", "queries": f"{found.queries:,}", "quality": found.metric},
        [
            Headline("best quality", best.model, f"{found.metric} {best.quality:.3f}"),
            Headline("fastest here", fastest.model, f"{fastest.texts_per_second:,.0f} texts/s"),
        ],
        sections,
        plots={
            "Quality and speed": scatter(
                found.metric,
                "texts per second here",
                [(c.model, c.texts_per_second, c.quality, c.is_current) for c in found.candidates],
            )
        },
    )


def as_markdown(found: ModelComparison) -> str:
    """The leaderboard for the Dagster UI."""
    return f"{_how_to_read(found)}\n\n{markdown_table(found.rows())}\n"


def _how_to_read(found: ModelComparison) -> str:
    told = (
        f"{found.queries:,} queries over {found.texts:,} texts of the table, every one compared. The interval is that of the "
        "difference, query by query, at 95%: where it holds 0, the two cannot be told apart by these queries."
    )
    return " ".join((told, *found.notes()))


def _row(candidate: Candidate) -> list[str]:
    against = candidate.against_best
    return [
        candidate.model + " (now)" * candidate.is_current,
        f"{candidate.quality:.3f}",
        f"{against.mean:+.3f} ({against.low:+.3f} to {against.high:+.3f})" if against is not None else NOTHING,
        f"{candidate.texts_per_second:,.0f}",
        duration(candidate.table_seconds),
        f"{candidate.dimensions:,}",
        f"{candidate.bytes_per_million / 1e9:.1f}",
        f"{candidate.cut_off:.1%}",
        f"{candidate.agreement:.2f}" if candidate.agreement is not None else NOTHING,
        f"{candidate.cost_per_million:,.2f}" if candidate.cost_per_million is not None else NOTHING,
    ]
