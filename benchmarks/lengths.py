"""How near the GEMM peak texts of each length come, and what that allows for a mixture of lengths.

Run: python -m benchmarks.lengths                   (needs the extra `openvino`)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.encode import gemm_peaks, make_texts, network_gflop, our_encoder, seconds_of
from benchmarks.harness import Measurement, Results
from benchmarks.shapes import BGE_SMALL, bge_small
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.settings import load_settings

LENGTHS = (16, 32, 64, 128, 256, 512)
_TOKENS = 24_576
"""Of each length, and a multiple of all: seconds of work, and batches enough to keep every core busy to the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs, of which the median counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = bge_small(Path(scratch) / "bge-small-shape")
        model = find_sentence_model(str(folder))
        settings = load_settings(
            embedding_device="cpu", embedding_model=str(folder), bge_pipeline_home=Path(scratch) / "home"
        )
        tokenizer = Tokenizer(model.files)
        mixed, _ = tokenizer.texts(make_texts("mixed", 1_024, model, tokenizer))
        works = {str(length): of_length(length) for length in LENGTHS} | {"mixed": mixed}
        peaks = gemm_peaks()
        encoders = {one: our_encoder(model, settings, "openvino", one) for one in arguments.precisions}
        seconds: dict[tuple[str, str], list[float]] = {}
        for round_number in range(arguments.rounds + 1):
            for precision, encoder in encoders.items():
                for name, tokens in works.items():
                    taken = seconds_of(partial(encoder.backend.run, tokens, max_texts=256))
                    if round_number:
                        seconds.setdefault((precision, name), []).append(taken)
        for encoder in encoders.values():
            encoder.close()
        gflop = {name: network_gflop(model, tokens.lengths) for name, tokens in works.items()}
    medians = {key: statistics.median(found) for key, found in seconds.items()}
    rows = [
        [
            precision,
            *(f"{gflop[name] / medians[precision, name] / peaks[precision]:.0%}" for name in works),
            f"{gflop['mixed'] / seconds_if_alone(medians, precision, mixed.lengths) / peaks[precision]:.0%}",
        ]
        for precision in encoders
    ]
    Measurement(
        "lengths",
        f"{BGE_SMALL}, on OpenVINO: {_TOKENS:,} tokens in texts of one length, and {len(mixed):,} texts of mixed lengths "
        f"({mixed.lengths.mean():.0f} tokens on average), as a share of the GEMM peak of the same run "
        f"({', '.join(f'{one} {peaks[one]:,.0f}' for one in encoders)} GFLOP/s); medians of {arguments.rounds} interleaved "
        "runs. The last column is what the mixture would reach if each text took as long as among texts of its own length.",
        [
            Results(
                "Share of the GEMM peak by tokens of a text",
                ["precision", *works, "mixed, at the rates of the lengths"],
                rows,
            )
        ],
    ).publish()


def of_length(length: int) -> RaggedTokens:
    """Texts of so many random tokens."""
    count = _TOKENS // length
    ids = np.random.default_rng(length).integers(1_000, 30_000, count * length).astype(np.int32)
    return RaggedTokens(ids, np.arange(0, count * length + 1, length))


def seconds_if_alone(medians: dict[tuple[str, str], float], precision: str, lengths: NDArray[np.int32]) -> float:
    """Seconds for texts of those lengths at the rates measured for single lengths, those between interpolated."""
    per_token = [medians[precision, str(length)] / _TOKENS for length in LENGTHS]
    return float((lengths * np.interp(lengths, LENGTHS, per_token)).sum())


if __name__ == "__main__":
    main()
