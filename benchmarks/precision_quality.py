"""What each precision does to search: nDCG@10 on the demo's questions, with the bundled model.

Run: python -m benchmarks.precision_quality         (needs the extras `embedded` and `openvino`; some minutes)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Measurement, Results
from bge_pipeline.demo.corpus import segments
from bge_pipeline.demo.questions import judge
from bge_pipeline.embedding.agreement import compare_vectors
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.metrics import RankingQuality, paired_difference, ranking_quality
from bge_pipeline.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".bge-pipeline"), help="folder for converted models")
    arguments = parser.parse_args()
    corpus = list(segments())
    texts = [segment.text for segment in corpus]
    judged = judge((row, segment.video_id, segment.text) for row, segment in enumerate(corpus))
    questions = list(judged.queries.values())
    reference = fp32_queries = fp32_quality = None
    rows = []
    for precision in ("fp32", "bf16", "int8"):
        service = EmbeddingsService.from_settings(
            load_settings(
                embedding_model="bundled",
                embedding_device="cpu",
                embedding_backend="openvino",
                embedding_precision=precision,
                bge_pipeline_home=arguments.home,
            ),
            calibration_texts=lambda: texts,
        )
        vectors = service.encode_texts(texts)
        queries = service.encode_queries(questions)
        used = service.space.precision
        service.shutdown()
        if reference is None or fp32_queries is None:
            reference, fp32_queries = vectors, queries
        quality = quality_at_10(judged, queries, vectors)
        fp32_quality = fp32_quality or quality
        mixed = quality_at_10(judged, fp32_queries, vectors)
        change = paired_difference(quality.ndcg_by_query, fp32_quality.ndcg_by_query)
        figures = compare_vectors(vectors, reference).figures
        rows.append(
            [
                precision if used == precision else f"{precision} (fell back to {used})",
                f"{quality.ndcg:.4f}",
                f"{quality.ndcg / fp32_quality.ndcg:.1%}",
                f"{change.low:+.4f} to {change.high:+.4f}",
                f"{mixed.ndcg / fp32_quality.ndcg:.1%}",
                f"{figures['mean_cosine']:.4f}",
                f"{figures['min_cosine']:.4f}",
                f"{figures['neighbour_overlap']:.1%}",
            ]
        )
    columns = [
        "precision",
        "nDCG@10",
        "of fp32's",
        "95% interval of the change",
        "of fp32's, with fp32 queries",
        "mean cosine",
        "min cosine",
        "top-10 neighbours shared",
    ]
    Measurement(
        "precision",
        f"The bundled model on OpenVINO: {len(texts):,} demo segments and {len(judged.queries)} questions, exact search.",
        [Results("Search quality by precision", columns, rows)],
    ).publish()


def quality_at_10(judged: JudgedQueries, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> RankingQuality:
    order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    rankings = {query: [str(row) for row in found] for query, found in zip(judged.queries, order, strict=True)}
    return ranking_quality(judged.qrels, rankings, k=10)


if __name__ == "__main__":
    main()
