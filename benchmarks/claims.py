"""What this project set out to reach, beside what a benchmark of the configured table measures here. Prints Markdown.

Run: python -m benchmarks.claims            (on a migrated table; ENABLE_RERANKER and EVAL_QUERIES fill more lines)
"""

from __future__ import annotations

from dataclasses import dataclass

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.benchmark import benchmark
from bge_pipeline.phases.migration import Migration
from bge_pipeline.report.benchmark import BenchmarkReport
from bge_pipeline.report.pages import markdown_table
from bge_pipeline.settings import load_settings
from scripts.test_embedding_speed import BASELINE_TEXTS_PER_SECOND

UNMEASURED = "not measured on this hardware"


@dataclass(frozen=True)
class Claim:
    """A figure that was aimed at, beside what was measured here."""

    what: str
    claimed: str
    measured: str


def claims(report: BenchmarkReport) -> list[Claim]:
    """Each aim, with the report's figure."""
    best = report.best_texts_per_second or 0.0
    here = f"{best:,.0f} texts/s ({report.model}, {report.device}, {report.precision})"
    on_gpu = report.device.startswith("cuda")
    checks = report.gate.checks if report.gate is not None else ()
    retained = next((check.value for check in checks if check.name == "ndcg_retained"), None)
    storage, rerank = report.storage, report.rerank
    old_bytes, new_bytes = storage.old_vector_bytes, storage.new_vector_bytes
    smaller = f"{1 - new_bytes / old_bytes:.0%}" if old_bytes and new_bytes else "not recorded"
    return [
        Claim("encoding, consumer GPU", "1,500 to 2,000 texts/s", here if on_gpu else f"{UNMEASURED}; here {here}"),
        Claim("encoding, GTE-Qwen2-1.5B", "30 to 50 texts/s", UNMEASURED),
        Claim(
            f"speed-up over {BASELINE_TEXTS_PER_SECOND:.0f} texts/s",
            "about 50 times",
            f"{best / BASELINE_TEXTS_PER_SECOND:,.1f} times"
            + ("" if on_gpu else ", though this machine has no GPU and the baseline had one"),
        ),
        Claim("one vector", "75% smaller", smaller),
        Claim(
            "nDCG@20 retained",
            "0.92, with the reranker 0.95",
            f"{retained:.2f}" if retained is not None else "not measured: needs EVAL_QUERIES and the old model",
        ),
        Claim(
            "reranking 200 candidates",
            "with bge-reranker-large",
            f"{rerank.milliseconds_per_query:,.0f} ms a query ({rerank.model})" if rerank else UNMEASURED,
        ),
    ]


def main() -> None:
    settings = load_settings()
    service = EmbeddingsService.from_settings(settings)
    try:
        with Database.from_settings(settings) as database:
            report = benchmark(Migration(database, settings), service)
    finally:
        service.shutdown()
    rows = [["figure", "promised", "measured here"]]
    print(markdown_table(rows + [[claim.what, claim.claimed, claim.measured] for claim in claims(report)]))


if __name__ == "__main__":
    main()
