"""What the quality gate says about right, wrongly set up and damaged columns, over several corpora and sizes. Prints Markdown.

The bounds were chosen on the corpora of `TUNING`; those of `HELD_OUT` had no say in them. Vectors are kept in the cache
folder of benchmarks.corpora, so that another run only judges.

Run: python -m benchmarks.gate_evidence            (about fifteen minutes on two cores, two when repeated)
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cls_model import make_cls_model
from benchmarks.corpora import CACHE, Corpus, load_corpora
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.quality.bounds import GateBounds
from bge_pipeline.quality.gate import GateResult, QualityMeasurements, decide
from bge_pipeline.quality.known_items import known_item_search, scattered_words
from bge_pipeline.quality.label_free import neighbour_agreement, stored_vectors_match
from bge_pipeline.quality.metrics import ranking_quality, to_unit_length
from bge_pipeline.quality.poolings import POOLING_WORDS, compare_poolings
from bge_pipeline.settings import load_settings

Vectors = NDArray[np.float32]
TUNING = ("demo", "jargon, definitions", "debian policy")
HELD_OUT = ("postgresql manual", "fortunes")
SIZES = (250, 1_000, 5_000)
LARGE = ("demo",)
"""Corpora of which 5,000 rows are compared too, with the bundled model."""
REEMBEDDED = 200
KNOWN_ITEM_ROWS = 1_000
QUERIES = 150
LIMIT = 16


@dataclass(frozen=True)
class Rows:
    """Rows of a corpus, those that answer its queries among the first."""

    corpus: Corpus
    ids: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        return [self.corpus.passages[row] for row in self.ids]

    @property
    def questions(self) -> list[str]:
        return sorted(self.corpus.judged.queries)[:QUERIES]


@dataclass(frozen=True)
class Made:
    """What one network makes of the rows, of many and of few words out of them, and of the questions, by pooling."""

    rows: Mapping[str, Vectors]
    words: Mapping[str, Vectors]
    few_words: Mapping[str, Vectors]
    questions: Mapping[str, Vectors]
    read_whole: float


@dataclass(frozen=True)
class Case:
    """A column that is judged: what the configured model makes (`made`, `pooling`), and what is stored, if that differs."""

    name: str
    kind: str
    made: Made
    pooling: str
    stored: Callable[[Vectors], Vectors] = lambda vectors: vectors


def rows_of(corpus: Corpus, most: int) -> Rows:
    """The rows in an order of chance, but for answers to the questions, of which half stand among the first 250."""
    order = sorted(corpus.passages)
    random.Random(0).shuffle(order)
    asked = sorted(corpus.judged.queries)[:QUERIES]
    answers = list(dict.fromkeys(row for query in asked for row in corpus.judged.qrels[query]))
    first = answers[:125]
    others = [row for row in order if row not in set(first)]
    beginning = first + others[: 250 - len(first)]
    random.Random(1).shuffle(beginning)
    rest = [row for row in [*answers[125:], *others] if row not in set(beginning)]
    return Rows(corpus, tuple(dict.fromkeys([*beginning, *rest]))[:most])


def make(rows: Rows, folder: str) -> Made:
    """Vectors by every pooling of a model, from the cache or made."""
    texts = rows.texts
    few = texts[:REEMBEDDED]
    questions = [rows.corpus.judged.queries[query] for query in rows.questions]
    return Made(
        rows=every_way(texts, folder, as_queries=False),
        words=every_way(scattered_words(few), folder, as_queries=True),
        few_words=every_way(scattered_words(few, words=POOLING_WORDS), folder, as_queries=True),
        questions=every_way(questions, folder, as_queries=True),
        read_whole=float(1 - encoder_of(folder).tokenize(texts).truncated.mean()),
    )


def every_way(texts: Sequence[str], folder: str, *, as_queries: bool) -> dict[str, Vectors]:
    key = hashlib.sha256("\0".join([folder, str(as_queries), *texts]).encode()).hexdigest()[:16]
    path = CACHE / "vectors" / f"{key}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        encoder = encoder_of(folder)
        made = encoder.encode_every_way((encoder.tokenize_queries if as_queries else encoder.tokenize)(texts))
        np.savez(path, **{pooling: vectors.astype(np.float16) for pooling, vectors in made.items()})
    return {pooling: to_unit_length(vectors) for pooling, vectors in np.load(path).items()}


@cache
def encoder_of(folder: str) -> TransformerEncoder:
    encoder = load_encoder(load_settings(embedding_model=folder))
    assert isinstance(encoder, TransformerEncoder)
    return encoder


def first(made: Made, size: int) -> Made:
    return replace(made, rows={pooling: vectors[:size] for pooling, vectors in made.rows.items()})


def cases(bundled: Made, cut: Made | None, cls_trained: Made | None) -> Iterator[Case]:
    chance = np.random.default_rng(0)

    def half_shuffled(vectors: Vectors) -> Vectors:
        found, moved = vectors.copy(), chance.permutation(len(vectors))[: len(vectors) // 2]
        found[moved] = vectors[chance.permutation(moved)]
        return found

    def random_vectors(vectors: Vectors) -> Vectors:
        return to_unit_length(chance.standard_normal(vectors.shape))

    right, along, after = "right", "set up wrongly all along", "damaged afterwards"
    yield Case("mean pooling, as trained", right, bundled, "mean")
    yield Case("the same, stored as float16", right, bundled, "mean", lambda v: v.astype(np.float16).astype(np.float32))
    if cls_trained is not None:
        yield Case("CLS pooling, trained for it", right, cls_trained, "cls")
        yield Case("mean pooling, trained for CLS", along, cls_trained, "mean")
    yield Case("CLS pooling", along, bundled, "cls")
    yield Case("max pooling", along, bundled, "max")
    yield Case("last token", along, bundled, "lasttoken")
    if cut is not None:
        yield Case(f"limit of {LIMIT} tokens", along, cut, "mean")
        yield Case(f"limit of {LIMIT} tokens", after, bundled, "mean", lambda _: cut.rows["mean"])
    yield Case("CLS pooling", after, bundled, "mean", lambda _: bundled.rows["cls"])
    yield Case("max pooling", after, bundled, "mean", lambda _: bundled.rows["max"])
    yield Case("half of the rows shuffled", after, bundled, "mean", half_shuffled)
    yield Case("every row shifted by one", after, bundled, "mean", lambda v: np.roll(v, 1, axis=0))
    yield Case("rows shuffled", after, bundled, "mean", chance.permutation)
    yield Case("random vectors", after, bundled, "mean", random_vectors)
    yield Case("not normalised", after, bundled, "mean", lambda v: 3 * v)


def measure(case: Case, rows: Rows, old: Vectors, old_questions: Vectors) -> QualityMeasurements:
    """As quality.measure does on a table; the index is left out, which has nothing to do with the model."""
    made, size = case.made, len(next(iter(case.made.rows.values())))
    model = made.rows[case.pooling]
    column = case.stored(model)
    few = min(REEMBEDDED, size)
    known = known_item_search(made.words[case.pooling][:few], column[:KNOWN_ITEM_ROWS], range(few))
    compared = compare_poolings(
        case.pooling,
        {pooling: vectors[:few] for pooling, vectors in made.few_words.items()},
        {pooling: vectors[:few] for pooling, vectors in made.rows.items()},
    )
    return QualityMeasurements(
        ndcg_old=ndcg(rows, old_questions, old[:size]),
        ndcg_new=ndcg(rows, made.questions[case.pooling], column),
        ndcg_basis=f"{len(rows.questions)} questions",
        neighbours=neighbour_agreement(old[:size], column),
        known_items=known,
        stored_vectors=stored_vectors_match(column[:few], model[:few]),
        read_whole=made.read_whole,
        poolings=compared,
    )


def ndcg(rows: Rows, questions: Vectors, column: Vectors) -> float:
    """nDCG@20 of the questions that a row of the column answers."""
    ids = rows.ids[: len(column)]
    there, judged = set(ids), rows.corpus.judged
    qrels = {
        query: answers
        for query in rows.questions
        if (answers := {row: grade for row, grade in judged.qrels[query].items() if row in there})
    }
    order = np.argsort(-(questions @ to_unit_length(column).T), axis=1, kind="stable")[:, :20]
    rankings = {
        query: [ids[row] for row in ranking]
        for query, ranking in zip(rows.questions, order, strict=True)
        if query in qrels
    }
    return ranking_quality(qrels, rankings).ndcg


def limited_model() -> Path:
    """The bundled model, set up to read 16 tokens."""
    folder = CACHE / "limited-model"
    if not folder.exists():
        shutil.copytree(find_sentence_model("bundled").files.folder, folder)
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT, "do_lower_case": False}))
    return folder


def judged_cases(names: Sequence[str]) -> Iterator[tuple[str, int, Case, QualityMeasurements]]:
    hashing = HashingEncoder(1_536)
    for corpus in load_corpora():
        if corpus.name not in names:
            continue
        rows = rows_of(corpus, max(SIZES) if corpus.name in LARGE else 1_000)
        bundled = make(rows, "bundled")
        limited = make(Rows(corpus, rows.ids[:1_000]), str(limited_model()))
        cls_trained = make(Rows(corpus, rows.ids[: min(SIZES)]), str(make_cls_model()))
        old = hashing.encode(hashing.tokenize(rows.texts))
        asked = [corpus.judged.queries[query] for query in rows.questions]
        old_questions = hashing.encode(hashing.tokenize_queries(asked))
        for size in sorted({min(size, len(rows.ids)) for size in SIZES}):
            others = (
                first(limited, size) if size <= 1_000 else None,
                cls_trained if size == min(SIZES) else None,
            )
            for case in cases(first(bundled, size), *others):
                yield corpus.name, size, case, measure(case, rows, old, old_questions)


def span(values: Sequence[float], spell: str = "{:.2f}") -> str:
    low, high = spell.format(min(values)), spell.format(max(values))
    return low if low == high else f"{low} to {high}"


def stops(results: Sequence[GateResult]) -> str:
    """The checks that refused, with how many of the columns each refused."""
    names = [check.name for result in results for check in result.failures]
    return ", ".join(f"{name.replace('_', ' ')} {names.count(name)}" for name in dict.fromkeys(names)) or "-"


def table(found: Sequence[tuple[str, int, Case, QualityMeasurements]], *, labelled: bool) -> None:
    print(
        "| column | neighbours | known items | pooling advantage | made again | unit length | read whole | nDCG kept | "
        "let through | stopped by |"
    )
    print("|---" * 10 + "|")
    for kind, name in dict.fromkeys((case.kind, case.name) for _, _, case, _ in found):
        those = [measured for _, _, case, measured in found if (case.kind, case.name) == (kind, name)]
        if not labelled:
            those = [replace(measured, ndcg_old=None, ndcg_new=None) for measured in those]
        results = [decide(measured, GateBounds()) for measured in those]
        values = {
            check: [c.value for result in results for c in result.checks if c.name == check and c.value is not None]
            for check in (
                "neighbour_agreement",
                "known_item_success",
                "pooling_advantage",
                "stored_vectors_matching",
                "unit_length",
                "read_whole",
                "ndcg_retained",
            )
        }
        figures = " | ".join(span(one) if one else "" for one in values.values())
        passed = sum(result.passed for result in results)
        print(f"| {kind}: {name} | {figures} | {passed} of {len(results)} | {stops(results)} |")
    print()


def main() -> None:
    bounds = GateBounds()
    print(f"Bounds: {bounds}\n")
    for title, names in (("Corpora that the bounds were chosen on", TUNING), ("Held out", HELD_OUT)):
        found = list(judged_cases(names))
        sizes = {name: sorted({size for other, size, _, _ in found if other == name}) for name in names}
        print(
            f"### {title}: "
            + "; ".join(f"{name} ({', '.join(map(str, of))} rows)" for name, of in sizes.items())
            + "\n"
        )
        print("Without labelled queries:\n")
        table(found, labelled=False)
        print("With them:\n")
        table(found, labelled=True)


if __name__ == "__main__":
    main()
