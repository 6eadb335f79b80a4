"""Texts per second of EmbeddingsService on this machine, at several batch sizes, beside the 40 texts/s of the old model.

Run: python scripts/test_embedding_speed.py
     python scripts/test_embedding_speed.py --model bundled --texts 256 --batch-sizes 8 64 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.settings import load_settings

BASELINE_TEXTS_PER_SECOND = 40.0
"""Reported by users of the old model, GTE-Qwen2-1.5B; not measured here."""


def measure(
    service: EmbeddingsService, texts: Sequence[str], batch_sizes: Sequence[int], rounds: int
) -> dict[int, float]:
    """Median texts per second of each batch size, after one round that is not counted."""
    service.encode_texts(texts[: max(batch_sizes)])
    speeds = {}
    for batch_size in batch_sizes:
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            service.encode_texts(texts, batch_size=batch_size)
            seconds.append(time.perf_counter() - started)
        speeds[batch_size] = len(texts) / statistics.median(seconds)
    return speeds


def read_texts(file: Path | None, n: int) -> list[str]:
    """The first `n` lines of a file, or segments of the demo corpus."""
    if file is None:
        return [segment.text for segment in segments(n)]
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][:n]


def as_text(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        (
            f"{result['model']}, {result['dimensions']} dimensions, {result['precision']} on {result['device']}; "
            f"{result['texts']:,} texts of {result['mean_characters']:.0f} characters on average"
        ),
        f"{'batch size':>10}  {'texts/s':>8}  of {result['baseline_texts_per_second']:g} texts/s",
    ]
    for run in result["runs"]:
        lines.append(f"{run['batch_size']:>10}  {run['texts_per_second']:>8,.0f}  {run['speedup']:.1f} times")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1_024, help="texts to embed (default: %(default)s)")
    parser.add_argument("--file", type=Path, help="take the texts from a file, one a line; default: the demo corpus")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32, 64, 256], help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many (default: %(default)s)")
    parser.add_argument("--model", help="in place of EMBEDDING_MODEL")
    parser.add_argument("--device", help="in place of EMBEDDING_DEVICE")
    parser.add_argument(
        "--baseline", type=float, default=BASELINE_TEXTS_PER_SECOND, help="default: %(default)s texts/s"
    )
    parser.add_argument(
        "--require", type=float, metavar="TEXTS_PER_SECOND", help="exit with 3 where the best is slower"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    if min(chosen.texts, chosen.rounds, *chosen.batch_sizes) < 1 or chosen.baseline <= 0:
        parser.error("expected numbers above 0")
    overrides = {"embedding_model": chosen.model, "embedding_device": chosen.device}
    settings = load_settings(**{name: value for name, value in overrides.items() if value is not None})
    texts = read_texts(chosen.file, chosen.texts)
    if not texts:
        parser.error(f"--file: {chosen.file} holds no text")
    service = EmbeddingsService.from_settings(settings)
    try:
        speeds = measure(service, texts, chosen.batch_sizes, chosen.rounds)
        result = {
            "model": service.space.model,
            "dimensions": service.dimensions,
            "device": service.device,
            "precision": service.space.precision,
            "texts": len(texts),
            "mean_characters": statistics.mean(map(len, texts)),
            "baseline_texts_per_second": chosen.baseline,
            "runs": [
                {"batch_size": size, "texts_per_second": speed, "speedup": speed / chosen.baseline}
                for size, speed in speeds.items()
            ],
        }
    finally:
        service.shutdown()
    print(json.dumps(result, indent=2) if chosen.json else as_text(result))
    return 3 if chosen.require is not None and max(speeds.values()) < chosen.require else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BgePipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
