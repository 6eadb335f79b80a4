"""What a search costs and may spare: the cross-encoder where the first stage is sure, lists of an IVFFlat index.

Run: EMBEDDING_MODEL=bundled python -m benchmarks.search_effort     (needs the extra `embedded`; some minutes on two cores)

There are no weights of a cross-encoder in that extra. What adaptive reranking can lose at most is measured with an oracle
that puts judged passages first by their grade: no reranker gains more than that, so none loses more by being spared.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from benchmarks.corpora import CACHE, demo_corpus
from benchmarks.corpus_tables import judged_rows, load_table
from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.index_recall import recommend_for_recall
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.search_quality import measure_adaptive_reranking, measure_search
from bge_pipeline.search import Retriever
from bge_pipeline.settings import Settings, load_settings

LISTS = (6, 20, 80)
LADDER = (1, 2, 3, 4, 6, 9, 13, 19)


class Oracle:
    """Scores a passage by its judged grade, with the first stage's order among equals."""

    def __init__(self, judged: JudgedQueries, texts: Sequence[str]) -> None:
        self._grades = {
            query: {texts[int(row)]: grade for row, grade in judged.qrels[query_id].items()}
            for query_id, query in judged.queries.items()
        }

    def score(self, query: str, docs: Sequence[str]) -> NDArray[np.float32]:
        """Grades float32 (n,)."""
        return np.array([self._grades[query].get(doc, 0) for doc in docs], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of vectors")
    cache = parser.parse_args().cache
    corpus = demo_corpus()
    judged = judged_rows(corpus)
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(bge_pipeline_home=Path(home), quality_gate="off")
        service = EmbeddingsService.from_settings(settings)
        with Database.from_settings(settings) as database:
            load_table(database, settings, corpus, service, cache)
            ways = modes(Retriever(database, settings, service), judged)
            oracle = Oracle(judged, list(corpus.passages.values()))
            sparing = reranking(Retriever(database, settings, service, reranker=oracle), judged)
            recall = recall_by_probes(database, settings, service.encode_queries(list(judged.queries.values())))
        model = service.space.model
        service.shutdown()
    about = f"The demo's {len(judged)} questions over its {len(corpus.passages):,} rows, {model}."
    Measurement("search_effort", about, [ways, sparing, recall]).publish()


def modes(retriever: Retriever, judged: JudgedQueries) -> Results:
    """What each way of searching costs; how good it is on more corpora, search_quality shows."""
    rows = []
    for mode in ("dense", "lexical", "hybrid"):
        found = measure_search(retriever, judged, mode=mode)
        quality = (found.quality.ndcg, found.quality.recall, found.quality.mrr)
        rows.append([mode, *(f"{value:.3f}" for value in quality), f"{found.p50_ms:.0f}", f"{found.p95_ms:.0f}"])
    return Results("modes", ["mode", "nDCG@20", "recall@20", "MRR", "p50 ms", "p95 ms"], rows)


def reranking(retriever: Retriever, judged: JudgedQueries) -> Results:
    """How sure the first stage is, how right it is then, and what an oracle would lose by being spared."""
    rows = []
    for mode in ("dense", "hybrid"):
        measured = measure_adaptive_reranking(retriever, judged, mode=mode)
        sure = np.array(
            [not retriever.search(query, mode=mode, rerank="auto").reranked for query in judged.queries.values()]
        )
        first_stage = np.array(measured.never.quality.ndcg_by_query)
        oracle = [way.quality.ndcg for way in (measured.never, measured.auto, measured.always)]
        rows.append(
            [
                mode,
                f"{sure.mean():.0%}",
                f"{first_stage[sure].mean():.3f}, {first_stage[~sure].mean():.3f}",
                ", ".join(f"{ndcg:.3f}" for ndcg in oracle),
            ]
        )
    columns = ["mode", "questions spared", "first stage: spared, others", "oracle: never, auto, always"]
    return Results("adaptive reranking, nDCG@20", columns, rows)


def recall_by_probes(database: Database, settings: Settings, queries: NDArray[np.float32]) -> Results:
    """Recall@20 by probes, for the questions and for stored vectors."""
    rows = []
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
            rows.append([f"{lists}, {name}", f"{found.default}", *(recalls.get(value, "") for value in LADDER)])
    return Results("recall@20 by probes", ["lists, queries", "default", *map(str, LADDER)], rows)


if __name__ == "__main__":
    main()
