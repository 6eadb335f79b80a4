"""Making OpenVINO models, in a child process: once per model, with PyTorch and NNCF that the parent then never loads.

A child also keeps their progress bars off the terminal, their usage statistics switched off without touching the
parent's environment, and gives all their memory back.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bge_pipeline.embedding.layouts import layout_for
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.tokenizer import RaggedTokens, Tokenizer
from bge_pipeline.errors import ModelUnavailable, OutOfMemory

MODEL_FILE = "model.xml"
TOKENIZER_FILE = "tokenizer.json"
_CALIBRATION_FILE = "calibration.npz"

_LONGEST_PACKED = 1_024
"""Tokens in the longest text of a model that is run over packed rows: which token sees which is a square of them."""

_KILLED = -9
"""The exit status of a child that the system ended, by number, since Windows has no SIGKILL."""

_NO_STATISTICS = {"CI": "true", "NNCF_CI": "1"}
"""What OpenVINO and NNCF look at before they report their use to their makers."""


def convert_in_child(files: ModelFiles, pooling: str | None, target: Path) -> None:
    """Write the fp32 network and the tokenizer to `target`, an existing folder.

    Args:
        pooling: None for a cross-encoder.

    Raises:
        ModelUnavailable: the model cannot be converted; the message ends with the reason.
        OutOfMemory: the child was stopped for want of memory.
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
        OutOfMemory: the child was stopped for want of memory.
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
    if done.returncode == _KILLED or "MemoryError" in done.stderr or "bad_alloc" in done.stderr:
        raise OutOfMemory(f"no memory to {job['act']} {name}")
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise ModelUnavailable(f"{name}: cannot {job['act']} the model for OpenVINO: {reason}")


def _convert(files: ModelFiles, pooling: str | None, target: Path) -> None:
    import openvino as ov
    import torch

    from bge_pipeline.embedding.torch_backend import load_network, over_packed_rows

    tokenizer = Tokenizer(files)
    network = load_network(files, pooling)
    packed = over_packed_rows(network) if files.max_tokens <= _LONGEST_PACKED else None
    if packed is not None:
        names = ["input_ids", "position_ids", "segments"]
    else:
        names = ["input_ids", "attention_mask"]
        if pooling is None and tokenizer.has_types:
            names.append("token_type_ids")
    # Values that are valid for every input, whichever way it is used: a token id, a position, a mask, a type.
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in names}
    converted = ov.convert_model(packed or network, example_input=example)
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
    model = ov.Core().read_model(source / MODEL_FILE)
    layout = layout_for([port.any_name for port in model.inputs], pad_id=0)
    # One text at a time: padding would enter the statistics of the activations.
    batches = layout.plan(tokens.lengths, token_budget=1, max_texts=1)
    singles = [layout.arrays(tokens, batch) for batch in batches]
    quantized = nncf.quantize(
        model,
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
