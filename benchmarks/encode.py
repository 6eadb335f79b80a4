"""Encoding speed: ours in every precision against every peer, on the same texts, threads and weights.

Run: python -m benchmarks.encode                    (needs the extra `bench`; peers that are absent are listed)
     python -m benchmarks.encode --model bundled --kinds mixed --texts 256 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import BGE_SMALL, bge_small
from bge_pipeline.embedding.agreement import compare_vectors
from bge_pipeline.embedding.calibration import Guard, vector_guard
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.loading import load_backend
from bge_pipeline.embedding.models import SentenceModel, find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.settings import Settings, load_settings

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
EncodeInBatches = Callable[[Sequence[str], int], Vectors]

RANDOM_MODEL = "random"
DEFAULTS = "sentence-transformers fp32, batch 32"
CANDIDATE_BATCHES = (4, 8, 16, 32)
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "openvino",
    "nncf",
    "optimum-intel",
    "onnxruntime",
    "fastembed",
)


class Absent(Exception):
    """A peer cannot take part."""


@dataclass
class Contender:
    """One way to encode. `seconds` and `cpu_seconds` hold one figure per round for each kind of text."""

    name: str
    precision: str
    encode: Encode | None = None
    absent: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)


def main() -> None:
    arguments = _arguments()
    logging.getLogger("bge_pipeline").setLevel(logging.INFO)
    if arguments.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    console = Console(width=max(110, Console().width))
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        workplace = arguments.workplace.resolve() if arguments.workplace else Path(scratch)
        folder = bge_small(workplace / "bge-small-shape") if arguments.model == RANDOM_MODEL else None
        model = find_sentence_model(str(folder or arguments.model))
        peaks = gemm_peaks()
        console.print(f"GEMM peak, GFLOP/s: {', '.join(f'{name} {peak:,.0f}' for name, peak in peaks.items())}")
        tokenizer = Tokenizer(model.files)
        texts = {kind: make_texts(kind, arguments.texts, model, tokenizer) for kind in arguments.kinds}
        contenders = list(enter(model, workplace, arguments.only, texts, console))
        for kind in arguments.kinds:
            compete(contenders, kind, texts[kind], arguments.rounds, console)
        report = {
            "command": command(arguments),
            "model": BGE_SMALL if folder else model.files.name,
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "rounds": arguments.rounds,
            "gemm_peak_gflops": peaks,
            "versions": versions(),
            "kinds": {
                kind: results(contenders, kind, texts[kind], model, tokenizer, peaks) for kind in arguments.kinds
            },
            "absent": {contender.name: contender.absent for contender in contenders if contender.absent},
        }
    for kind, result in report["kinds"].items():
        console.print(table(kind, result))
    for name, reason in report["absent"].items():
        console.print(f"{name}: {reason}")
    path = arguments.out or Path(__file__).parent / "results" / f"encode-{slug(report)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {path}")


def command(arguments: argparse.Namespace) -> str:
    """What to type to measure the same; folders of this machine are left out."""
    left_out = {str(folder) for folder in (arguments.workplace, arguments.out) if folder is not None}
    kept = [word for word in sys.argv[1:] if word not in left_out | {"--workplace", "--out"}]
    return " ".join(["python -m benchmarks.encode", *kept])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=RANDOM_MODEL, help="`random` (BGE-small's shape), `bundled`, a folder or a hub name"
    )
    parser.add_argument("--texts", type=int, default=512, help="texts of each kind; a fifth of it for long ones")
    parser.add_argument("--kinds", nargs="+", default=["short", "mixed", "long"], choices=["short", "mixed", "long"])
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs, of which the median counts")
    parser.add_argument("--threads", type=int, help="cores that everybody may use; all when not given")
    parser.add_argument("--only", default="", help="regular expression that names of contenders must match")
    parser.add_argument("--workplace", type=Path, help="keeps converted models there for the next run")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    return parser.parse_args()


# --- Texts and model ---------------------------------------------------------------------------------------------------


def make_texts(kind: str, count: int, model: SentenceModel, tokenizer: Tokenizer) -> list[str]:
    """Distinct runs of words from Python's own documentation; lengths in tokens as the kind says.

    short: 3 to 30. mixed: log-normal around 35, from 3 to the model's most (512 for BGE-small). long: 200 to its most.
    """
    import pydoc_data.topics

    random = np.random.default_rng({"short": 1, "mixed": 2, "long": 3}[kind])
    words = " ".join(str(topic) for topic in pydoc_data.topics.topics.values()).split()
    per_word = tokenizer.texts([" ".join(words[:100])])[0].lengths[0] / 100
    most = model.files.max_tokens
    if kind == "short":
        tokens = random.integers(3, 31, count)
    elif kind == "mixed":
        tokens = np.clip(random.lognormal(np.log(35), 1.0, count), 3, most).astype(int)
    else:
        tokens = random.integers(min(200, most - 1), most, max(8, count // 5))
    starts = random.integers(0, len(words) - most, len(tokens))
    return [
        " ".join(words[start : start + max(1, round(length / per_word))])
        for start, length in zip(starts, tokens, strict=True)
    ]


# --- Contenders --------------------------------------------------------------------------------------------------------


def enter(
    model: SentenceModel, workplace: Path, only: str, texts: dict[str, list[str]], console: Console
) -> Iterator[Contender]:
    """Every contender, ready to run or with the reason why not. Peers get the batch size that suits them best."""
    sample = texts.get("mixed", next(iter(texts.values())))[:64]
    folder = workplace / "copy"
    shutil.copytree(model.files.folder, folder, ignore=shutil.ignore_patterns("onnx", "openvino"), dirs_exist_ok=True)
    settings = load_settings(embedding_device="cpu", bge_pipeline_home=workplace / "home", embedding_model=str(folder))
    fixed: list[tuple[str, str, Callable[[], Encode]]] = [
        ("ours, OpenVINO fp32", "fp32", lambda: ours(model, settings, "openvino", "fp32")),
        ("ours, OpenVINO bf16", "bf16", lambda: ours(model, settings, "openvino", "bf16")),
        ("ours, OpenVINO int8", "int8", lambda: ours(model, settings, "openvino", "int8")),
        ("ours, torch fp32", "fp32", lambda: ours(model, settings, "torch", "fp32")),
        ("ours, torch bf16", "bf16", lambda: ours(model, settings, "torch", "bf16")),
        (DEFAULTS, "fp32", lambda: at_batch(sentence_transformers(folder), 32)),
    ]
    tuned: list[tuple[str, str, Callable[[], EncodeInBatches]]] = [
        ("sentence-transformers fp32", "fp32", lambda: sentence_transformers(folder)),
        ("sentence-transformers bf16", "bf16", lambda: sentence_transformers(folder, precision="bf16")),
        ("sentence-transformers openvino", "bf16", lambda: sentence_transformers_openvino(folder, workplace)),
        ("sentence-transformers openvino int8", "int8", lambda: sentence_transformers_int8(model, folder, workplace)),
        ("sentence-transformers onnx", "fp32", lambda: sentence_transformers(folder, backend="onnx")),
        ("onnxruntime fp32, sorted", "fp32", lambda: onnxruntime(model, workplace)),
        ("onnxruntime dynamic int8, sorted", "int8", lambda: onnxruntime(model, workplace, int8=True)),
        ("fastembed", "fp32", lambda: fastembed(model, folder)),
    ]
    for name, precision, make in fixed:
        if re.search(only, name):
            yield _entered(Contender(name, precision), make, console)
    for name, precision, make_in_batches in tuned:
        if not re.search(only, name):
            continue
        try:
            in_batches = make_in_batches()
            best = best_batch(in_batches, sample)
        except (Absent, ImportError) as error:
            yield Contender(name, precision, absent=f"not installed ({_first_line(error)})")
        else:
            make = partial(at_batch, in_batches, best)
            yield _entered(Contender(f"{name}, batch {best}", precision), make, console)


def _entered(contender: Contender, make: Callable[[], Encode], console: Console) -> Contender:
    started = time.perf_counter()
    contender.encode = make()
    contender.encode(["to warm up", "with two texts"])
    console.print(f"{contender.name}: ready after {time.perf_counter() - started:.1f} s")
    return contender


def best_batch(encode: EncodeInBatches, sample: Sequence[str]) -> int:
    """The candidate that is fastest on the sample."""
    encode(sample, CANDIDATE_BATCHES[0])
    return min(CANDIDATE_BATCHES, key=lambda batch: seconds_of(partial(encode, sample, batch)))


def at_batch(encode: EncodeInBatches, batch: int) -> Encode:
    return lambda texts: encode(texts, batch)


def ours(model: SentenceModel, settings: Settings, backend: str, precision: str) -> Encode:
    encoder = our_encoder(model, settings, backend, precision)
    return EmbeddingsService(encoder, settings).encode_texts


def our_encoder(model: SentenceModel, settings: Settings, backend: str, precision: str) -> TransformerEncoder:
    """The model as this package runs it; int8 is accepted whatever it does to the vectors."""
    settings = settings.model_copy(update={"embedding_backend": backend, "embedding_precision": precision})
    tokenizer, loaded = load_backend(
        model.files, model.task, model.space("fp32").fingerprint, settings, _any_agreement()
    )
    return TransformerEncoder(model, tokenizer, loaded, batch_size=settings.embedding_batch_size)


def _any_agreement() -> Guard:
    """Random weights say nothing about quality: here the agreement is reported, not demanded."""
    guard = vector_guard(None)
    return replace(guard, compare=lambda vectors, reference: replace(compare_vectors(vectors, reference), bounds={}))


def sentence_transformers(
    folder: Path, *, precision: str = "fp32", device: str = "cpu", backend: str = "torch"
) -> EncodeInBatches:
    import torch
    from sentence_transformers import SentenceTransformer

    if backend == "onnx":
        _need("optimum.onnxruntime")
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    options = {"model_kwargs": {"dtype": dtypes[precision]}} if precision in dtypes else {}
    encoder = SentenceTransformer(str(folder), device=device, backend=backend, **options)

    def encode(texts: Sequence[str], batch: int) -> Vectors:
        vectors = encoder.encode(list(texts), batch_size=batch, normalize_embeddings=True, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    return encode


def sentence_transformers_openvino(folder: Path, workplace: Path, file_name: str | None = None) -> EncodeInBatches:
    _need("optimum.intel.openvino")
    from sentence_transformers import SentenceTransformer

    exported = workplace / "st-openvino"
    if not exported.exists():
        SentenceTransformer(str(folder), device="cpu", backend="openvino").save_pretrained(str(exported))
    options = {"model_kwargs": {"file_name": file_name}} if file_name else {}
    encoder = SentenceTransformer(str(exported), device="cpu", backend="openvino", **options)
    return lambda texts, batch: np.asarray(encoder.encode(list(texts), batch_size=batch, normalize_embeddings=True))


def sentence_transformers_int8(model: SentenceModel, folder: Path, workplace: Path) -> EncodeInBatches:
    """The same quantisation as ours, run by sentence-transformers: what is left is how it is driven."""
    _need("optimum.intel.openvino")
    import nncf
    import openvino as ov

    int8_file = "openvino/openvino_model_int8.xml"
    if (workplace / "st-openvino" / int8_file).exists():
        return sentence_transformers_openvino(folder, workplace, int8_file)
    sentence_transformers_openvino(folder, workplace)
    source = workplace / "st-openvino" / "openvino" / "openvino_model.xml"
    tokens = vector_guard(None).calibrate(Tokenizer(model.files))
    layout = Padded(0)
    singles = [layout.arrays(tokens, batch) for batch in layout.plan(tokens.lengths, token_budget=1, max_texts=1)]
    read = ov.Core().read_model(source)
    if any("token_type_ids" in port.names for port in read.inputs):
        singles = [{**single, "token_type_ids": np.zeros_like(single["input_ids"])} for single in singles]
    nncf.set_log_level(logging.ERROR)
    quantized = nncf.quantize(
        read, nncf.Dataset(singles), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(singles)
    )
    ov.save_model(quantized, workplace / "st-openvino" / int8_file, compress_to_fp16=False)
    return sentence_transformers_openvino(folder, workplace, int8_file)


def onnxruntime(model: SentenceModel, workplace: Path, *, int8: bool = False) -> EncodeInBatches:
    """What a careful user writes: texts sorted by length, batches padded to their own longest."""
    _need("onnxruntime")
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.quantization import quantize_dynamic

    path = _onnx(model, workplace / "onnx" / "pooled.onnx", pooled=True)
    if int8:
        quantized = path.with_name("pooled-int8.onnx")
        if not quantized.exists():
            quantize_dynamic(path, quantized)
        path = quantized
    options = SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer(model.files)
    layout = Padded(tokenizer.pad_id)

    def encode(texts: Sequence[str], batch_size: int) -> Vectors:
        tokens, _ = tokenizer.texts(texts)
        vectors = np.empty((len(texts), model.dimensions), np.float32)
        for batch in layout.plan(tokens.lengths, token_budget=1 << 30, max_texts=batch_size):
            vectors[batch.rows] = session.run(None, layout.arrays(tokens, batch))[0]
        return vectors

    return encode


def fastembed(model: SentenceModel, folder: Path) -> EncodeInBatches:
    _need("fastembed")
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    _onnx(model, folder / "onnx" / "model.onnx", pooled=False)
    TextEmbedding.add_custom_model(
        model="benchmark",
        pooling=PoolingType.CLS if model.pooling == "cls" else PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="benchmark/benchmark"),
        dim=model.dimensions,
    )
    embedding = TextEmbedding("benchmark", specific_model_path=str(folder), threads=len(os.sched_getaffinity(0)))
    return lambda texts, batch: np.stack(list(embedding.embed(list(texts), batch_size=batch))).astype(np.float32)


def _onnx(model: SentenceModel, path: Path, *, pooled: bool) -> Path:
    """The network as ONNX, with pooling and normalisation or without."""
    _need("onnx")
    if path.exists():
        return path
    import torch

    from bge_pipeline.embedding.networks import PaddedNetwork
    from bge_pipeline.embedding.weights import load_transformer

    class Pooled(PaddedNetwork):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = super().forward(input_ids, attention_mask)
            if model.pooling == "cls":
                return torch.nn.functional.normalize(states[:, 0], dim=-1)
            weights = attention_mask.unsqueeze(-1)
            return torch.nn.functional.normalize((states * weights).sum(1), dim=-1)

    network = (Pooled if pooled else PaddedNetwork)(load_transformer(model.files, "embed texts"))
    path.parent.mkdir(exist_ok=True)
    example = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        network,
        (example, example),
        str(path),
        input_names=names,
        output_names=["output"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in names} | {"output": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    return path


def _need(module: str) -> None:
    """Raise Absent unless the module can be imported."""
    from importlib import import_module

    try:
        import_module(module)
    except ImportError as error:
        raise Absent(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


# --- Measuring ---------------------------------------------------------------------------------------------------------


def compete(contenders: Sequence[Contender], kind: str, texts: Sequence[str], rounds: int, console: Console) -> None:
    """Run everybody once per round, so that what disturbs the machine disturbs all; the first round only warms up."""
    reference: Vectors | None = None
    running = sorted((one for one in contenders if one.encode), key=lambda one: one.name != DEFAULTS)
    for round_number in range(rounds + 1):
        for contender in running:
            assert contender.encode is not None
            started, cpu_started = time.perf_counter(), time.process_time()
            vectors = contender.encode(texts)
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            if round_number == 0:
                reference = vectors if reference is None else reference
                contender.agreement[kind] = compare_vectors(vectors, reference).figures
                continue
            contender.seconds.setdefault(kind, []).append(seconds)
            contender.cpu_seconds.setdefault(kind, []).append(cpu_seconds)
        console.print(f"{kind}: round {round_number} of {rounds} done")


def gemm_peaks() -> dict[str, float]:
    """Best GFLOP/s of a matrix product by precision, in the shapes of the network, on all cores.

    By PyTorch, which takes MKL for fp32; that is slow on some processors, so that NumPy's OpenBLAS has a try too.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    peaks: dict[str, float] = {}
    for rows, inner, columns in ((1_024, 384, 1_536), (1_024, 1_536, 384), (2_048, 1_024, 1_024)):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        left8 = torch.randint(-128, 127, (rows, inner), dtype=torch.int8)
        right8 = torch.randint(-128, 127, (columns, inner), dtype=torch.int8).t()
        products = [
            ("fp32", partial(torch.mm, left, right)),
            ("fp32", partial(np.matmul, left.numpy(), right.numpy())),
            ("bf16", partial(torch.mm, left.bfloat16(), right.bfloat16())),
            ("int8", partial(torch._int_mm, left8, right8)),  # noqa: SLF001 - PyTorch has no other int8 product
        ]
        for name, product in products:
            product()
            best = min(seconds_of(product) for _ in range(40))
            peaks[name] = max(peaks.get(name, 0.0), 2e-9 * rows * inner * columns / best)
    return peaks


def seconds_of(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def network_gflop(model: SentenceModel, lengths: NDArray[np.int32]) -> float:
    """Arithmetic of the texts' real tokens: linear layers and the two products of attention, padding not counted."""
    config = model.files.config
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens, squares = int(lengths.sum()), int((lengths.astype(np.int64) ** 2).sum())
    return 2e-9 * layers * (tokens * (4 * hidden**2 + 2 * hidden * inner) + 2 * squares * hidden)


def results(
    contenders: Sequence[Contender],
    kind: str,
    texts: Sequence[str],
    model: SentenceModel,
    tokenizer: Tokenizer,
    peaks: dict[str, float],
) -> dict[str, Any]:
    lengths = tokenizer.texts(texts)[0].lengths
    gflop = network_gflop(model, lengths)
    medians = {one.name: statistics.median(one.seconds[kind]) for one in contenders if one.encode}
    slowest = medians.get(DEFAULTS)
    rows = [
        {
            "name": one.name,
            "precision": one.precision,
            "texts_per_second": len(texts) / medians[one.name],
            "tokens_per_second": int(lengths.sum()) / medians[one.name],
            "texts_per_cpu_second": len(texts) / statistics.median(one.cpu_seconds[kind]),
            "times_the_defaults": slowest / medians[one.name] if slowest else None,
            "gflops": gflop / medians[one.name],
            "share_of_gemm_peak": gflop / medians[one.name] / peaks[one.precision],
            "seconds": one.seconds[kind],
            "agreement_with_fp32": one.agreement[kind],
        }
        for one in contenders
        if one.encode
    ]
    return {
        "texts": len(texts),
        "tokens_mean": float(lengths.mean()),
        "tokens_longest": int(lengths.max()),
        "contenders": sorted(rows, key=lambda row: -row["texts_per_second"]),
    }


# --- Showing -----------------------------------------------------------------------------------------------------------


def table(kind: str, result: dict[str, Any]) -> Table:
    title = f"{kind}: {result['texts']} texts of {result['tokens_mean']:.0f} tokens on average"
    shown = Table(title=title, title_justify="left")
    shown.add_column("", no_wrap=True)
    for heading in ("texts/s", "tokens/s", "x defaults", "% of GEMM peak", "texts per CPU s", "min cosine"):
        shown.add_column(heading, justify="right")
    for row in result["contenders"]:
        shown.add_row(
            row["name"],
            f"{row['texts_per_second']:,.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_the_defaults']:.1f}" if row["times_the_defaults"] else "",
            f"{100 * row['share_of_gemm_peak']:.0f}",
            f"{row['texts_per_cpu_second']:,.1f}",
            f"{row['agreement_with_fp32']['min_cosine']:.4f}",
        )
    return shown


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def slug(report: dict[str, Any]) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", report["processor"].lower()).strip("-")
    return f"{name}-{report['cores']}-cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def quiet() -> None:
    """No warnings, progress bars or usage statistics of the libraries."""
    os.environ.update({"CI": "true", "NNCF_CI": "1", "TOKENIZERS_PARALLELISM": "true"})
    warnings.simplefilter("ignore")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main()
