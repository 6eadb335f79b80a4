"""Making OpenVINO models, in a child process: once per model, with PyTorch and NNCF that the parent then never loads.

A child also keeps their progress bars off the terminal, their usage statistics switched off without touching the
parent's environment, and gives all their memory back.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bge_pipeline.embedding.batching import pad, plan_batches
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.tokenizer import RaggedTokens, Tokenizer
from bge_pipeline.errors import ModelUnavailable

MODEL_FILE = "model.xml"
TOKENIZER_FILE = "tokenizer.json"
_CALIBRATION_FILE = "calibration.npz"

_NO_STATISTICS = {"CI": "true", "NNCF_CI": "1"}
"""What OpenVINO and NNCF look at before they report their use to their makers."""


def convert_in_child(files: ModelFiles, pooling: str | None, target: Path) -> None:
    """Write the fp32 network and the tokenizer to `target`, an existing folder.

    Args:
        pooling: None for a cross-encoder.

    Raises:
        ModelUnavailable: the model cannot be converted; the message ends with the reason.
        MemoryError: the child was stopped for want of memory.
    """
    _run_child(
        files.name,
        {
            "act": "convert",
            "files": {**asdict(files), "folder": str(files.folder)},
            "pooling": pooling,
            "target": str(target),
        },
    )


def quantize_in_child(name: str, source: Path, tokens: RaggedTokens, target: Path) -> None:
    """Write the int8 network made from the one in folder `source`, calibrated on texts, to the folder `target`.

    Raises:
        ModelUnavailable: the model cannot be quantised; the message ends with the reason.
        MemoryError: the child was stopped for want of memory.
    """
    types = np.zeros(0, np.int32) if tokens.types is None else tokens.types
    np.savez(target / _CALIBRATION_FILE, ids=tokens.ids, offsets=tokens.offsets, types=types)
    _run_child(name, {"act": "quantize", "source": str(source), "target": str(target)})
    (target / _CALIBRATION_FILE).unlink()


def _run_child(name: str, job: dict[str, Any]) -> None:
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-W", "ignore", "-m", __name__],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | _NO_STATISTICS,
        check=False,
    )
    if done.returncode == 0:
        return
    if done.returncode == -signal.SIGKILL or "MemoryError" in done.stderr or "bad_alloc" in done.stderr:
        raise MemoryError(f"no memory to {job['act']} {name}")
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise ModelUnavailable(f"{name}: cannot {job['act']} the model for OpenVINO: {reason}")


def _convert(files: ModelFiles, pooling: str | None, target: Path) -> None:
    import openvino as ov
    import torch

    from bge_pipeline.embedding.torch_backend import load_network

    tokenizer = Tokenizer(files)
    network = load_network(files, pooling)
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    if pooling is None and tokenizer.has_types:
        example["token_type_ids"] = torch.zeros(2, 8, dtype=torch.int64)
    converted = ov.convert_model(network, example_input=example)
    for port in converted.inputs:
        port.get_tensor().set_names(port.names & example.keys())
    ov.save_model(converted, str(target / MODEL_FILE), compress_to_fp16=False)
    tokenizer.save(target / TOKENIZER_FILE)


def _quantize(source: Path, target: Path) -> None:
    with np.load(target / _CALIBRATION_FILE) as arrays:
        tokens = RaggedTokens(arrays["ids"], arrays["offsets"], arrays["types"] if len(arrays["types"]) else None)

    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    # One text at a time: padding would enter the statistics of the activations.
    singles = [pad(tokens, batch, 0) for batch in plan_batches(tokens.lengths, token_budget=1, max_texts=1)]
    quantized = nncf.quantize(
        ov.Core().read_model(source / MODEL_FILE),
        nncf.Dataset(singles),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(singles),
    )
    ov.save_model(quantized, str(target / MODEL_FILE), compress_to_fp16=False)


def _main() -> None:
    job = json.load(sys.stdin)
    target = Path(job["target"])
    if job["act"] == "convert":
        files = ModelFiles(**{**job["files"], "folder": Path(job["files"]["folder"])})
        _convert(files, job["pooling"], target)
    else:
        _quantize(Path(job["source"]), target)


if __name__ == "__main__":
    _main()
