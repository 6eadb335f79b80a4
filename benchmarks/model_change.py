"""What changing the model buys: texts per second of GTE-Qwen2-1.5B's shape and of BGE-small's, on one device.

Run: python -m benchmarks.model_change               (the GPU where there is one, else the CPU; needs some 16 GiB of memory)
     python -m benchmarks.model_change --device cpu --texts 32 --rounds 1
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.encode import Encode, at_batch, best_batch, our_encoder, quiet, seconds_of, sentence_transformers
from benchmarks.harness import Measurement, Results
from benchmarks.shapes import bge_small, gte_qwen2
from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.device import best_precision, resolve_device
from bge_pipeline.embedding.families import BERT, GTE_QWEN2, family_of
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.settings import load_settings

_TEXTS_ON_CPU = 64
_TEXTS_ON_GPU = 2_048
_TIMES_AS_MANY = 32
"""Texts of the small model for each of the large one, so that both work for some seconds."""

DEFAULTS = "sentence-transformers' defaults: fp32, batch 32"
SAME_PRECISION = "sentence-transformers in our precision, best batch"
OURS = "bge-pipeline"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="EMBEDDING_DEVICE")
    parser.add_argument(
        "--texts", type=int, help=f"of the large model; the small one gets {_TIMES_AS_MANY} times as many"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--workplace", type=Path, help="keeps the models there for the next run")
    arguments = parser.parse_args()
    quiet()
    device = resolve_device(arguments.device)
    count = arguments.texts or (_TEXTS_ON_CPU if device == "cpu" else _TEXTS_ON_GPU)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-") as scratch:
        workplace = arguments.workplace or Path(scratch)
        for make, texts_of_model in ((gte_qwen2, count), (bge_small, count * _TIMES_AS_MANY)):
            texts = [segment.text for segment in segments(texts_of_model)]
            for way, load in ways(make(workplace / make.__name__), device, workplace / "home", texts):
                seconds = median_seconds(load, texts, arguments.rounds)
                rates.setdefault(way, []).append(len(texts) / seconds)
                print(f"{make.__name__}, {way}: {len(texts) / seconds:,.1f} texts/s", flush=True)
    (before, _), (_, after) = rates[DEFAULTS], rates[OURS]
    Measurement(
        "model_change",
        f"{count:,} demo segments by GTE-Qwen2-1.5B's shape and {count * _TIMES_AS_MANY:,} by BGE-small's, random weights, on "
        f"{torch.cuda.get_device_name(device) if device.startswith('cuda') else 'the CPU'}; medians of {arguments.rounds} runs. "
        f"Our precision is {best_precision(device, GTE_QWEN2)} for the one and {best_precision(device, BERT)} for the other.",
        [
            Results(
                "Texts per second",
                ["", "GTE-Qwen2-1.5B's shape", "BGE-small's shape", "times as fast"],
                [
                    [way, f"{large:,.1f}", f"{small:,.1f}", f"{small / large:,.0f}"]
                    for way, (large, small) in rates.items()
                ],
            )
        ],
        [f"From the large model at the defaults to the small one as it is run here: {after / before:,.0f} times."],
    ).publish()


def ways(folder: Path, device: str, home: Path, texts: Sequence[str]) -> Iterator[tuple[str, Callable[[], Encode]]]:
    """Each way to run a model, and what loads it."""
    model = find_sentence_model(str(folder))
    precision = best_precision(device, family_of(model.files.config))
    settings = load_settings(
        embedding_device=device,
        embedding_model=str(folder),
        embedding_dimensions=model.dimensions,
        bge_pipeline_home=home,
    )

    def in_same_precision() -> Encode:
        encode = sentence_transformers(folder, device=device, precision=precision)
        return at_batch(encode, best_batch(encode, texts[:64]))

    def as_here() -> Encode:
        return EmbeddingsService(our_encoder(model, settings, "auto", "auto"), settings).encode_texts

    yield DEFAULTS, lambda: at_batch(sentence_transformers(folder, device=device), 32)
    yield SAME_PRECISION, in_same_precision
    yield OURS, as_here


def median_seconds(load: Callable[[], Encode], texts: Sequence[str], rounds: int) -> float:
    """Of whole runs after one over some texts; the model's memory is given back before the next comes."""
    encode = load()
    encode(texts[: len(texts) // 8])
    seconds = statistics.median(seconds_of(partial(encode, texts)) for _ in range(rounds))
    del encode
    gc.collect()
    torch.cuda.empty_cache()
    return seconds


if __name__ == "__main__":
    main()
