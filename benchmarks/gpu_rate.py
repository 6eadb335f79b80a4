"""BGE-small's shape on a GPU: tokens per second from text to vectors, and of each stage alone; as a share of the card's peak.

Run: python -m benchmarks.gpu_rate
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.encode import at_batch, our_encoder, quiet, seconds_of, sentence_transformers
from benchmarks.harness import Measurement, Results
from benchmarks.shapes import bge_small
from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.models import SentenceModel, find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.torch_backend import TorchBackend, load_torch_backend
from bge_pipeline.settings import load_settings

_PARAMETERS_IN_PRODUCTS = 12 * (4 * 384 * 384 + 2 * 384 * 1_536)
"""Of BGE-small's twelve layers; two operations each for every token. Attention's own products are not counted."""
_CANDIDATE_BATCHES = (64, 256, 1_024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="EMBEDDING_DEVICE")
    parser.add_argument(
        "--texts", type=int, default=65_536, help="of the demo corpus, which repeats itself after 15,659"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs, of which the median counts")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("expected an NVIDIA GPU; for the CPU see benchmarks.encode")
    quiet()
    texts = [segment.text for segment in segments(arguments.texts)]
    with tempfile.TemporaryDirectory(prefix="bge-benchmark-") as scratch:
        model = find_sentence_model(str(bge_small(Path(scratch) / "bge-small-shape")))
        tokenizer = Tokenizer(model.files)
        tokens, _ = tokenizer.texts(texts)
        rate = partial(tokens_per_second, len(tokens.ids), rounds=arguments.rounds)
        backend = fp16(model, tokenizer, arguments.device)
        attention = type(backend._layout).name  # noqa: SLF001
        rows = [
            ["tokeniser alone", rate(lambda: tokenizer.texts(texts))],
            ["network, from tokens to vectors, 256 texts a pass", rate(lambda: backend.run(tokens, max_texts=256))],
            ["network, from tokens to vectors", rate(lambda: backend.run(tokens, max_texts=len(texts)))],
        ]
        network = rows[-1][1]
        backend.close()
        settings = load_settings(
            embedding_device=arguments.device,
            embedding_model=str(model.files.folder),
            bge_pipeline_home=Path(scratch) / "home",
        )
        service = EmbeddingsService(our_encoder(model, settings, "torch", "fp16"), settings)
        rows.append(["EmbeddingsService.encode_texts, from text to vectors", rate(lambda: service.encode_texts(texts))])
        whole = rows[-1][1]
        service.shutdown()
        peer = sentence_transformers(model.files.folder, device=arguments.device, precision="fp16")
        sample = texts[: len(texts) // 8]
        best = min(_CANDIDATE_BATCHES, key=lambda batch: seconds_of(partial(peer, sample, batch)))
        rows.append([f"sentence-transformers fp16, batch {best}", rate(lambda: at_batch(peer, best)(texts))])
    peak = gemm_peak(arguments.device)
    share = 2 * _PARAMETERS_IN_PRODUCTS * network / peak
    Measurement(
        "gpu_rate",
        f"{len(texts):,} demo segments, {len(tokens.ids) / len(texts):.0f} tokens each on average, BGE-small's shape with random "
        f"weights in fp16, texts {attention}, on {torch.cuda.get_device_name(arguments.device)} beside {os.cpu_count()} "
        f"processor cores, torch {torch.__version__}; medians of {arguments.rounds} runs.",
        [
            Results(
                "BGE-small's shape on a GPU",
                ["", "million tokens/s", "texts/s"],
                [[name, f"{found / 1e6:.2f}", f"{found * len(texts) / len(tokens.ids):,.0f}"] for name, found in rows],
            )
        ],
        [
            f"The network's matrix products run at {share:.0%} of the card's {peak / 1e12:,.0f} TFLOP/s with large matrices.",
            f"From text to vectors it is {whole / rows[-1][1]:.1f} times as fast as sentence-transformers at its best batch.",
        ],
    ).publish()


def fp16(model: SentenceModel, tokenizer: Tokenizer, device: str) -> TorchBackend:
    return load_torch_backend(model.files, model.task, device=device, precision="fp16", pad_id=tokenizer.pad_id)


def tokens_per_second(tokens: int, act: Callable[[], object], rounds: int) -> float:
    act()
    return tokens / statistics.median(seconds_of(act) for _ in range(rounds))


def gemm_peak(device: str) -> float:
    """FLOP/s of an fp16 product of square matrices."""
    side, products = 8_192, 20
    matrix = torch.randn(side, side, device=device, dtype=torch.float16)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize()

    multiply()
    return products * 2 * side**3 / min(seconds_of(multiply) for _ in range(3))


if __name__ == "__main__":
    main()
