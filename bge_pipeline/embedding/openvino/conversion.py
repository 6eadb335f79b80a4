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

from bge_pipeline.embedding.layouts.packed_rows import PackedRows
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.openvino.layouts import layout_named
from bge_pipeline.embedding.tasks import TaskName
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.errors import ModelUnavailable, OutOfMemory

MODEL_FILE = "model.xml"
TOKENIZER_FILE = "tokenizer.json"
_CALIBRATION_FILE = "calibration.npz"

_KILLED = -9
"""The exit status of a child that the system ended, by number, since Windows has no SIGKILL."""

_NO_STATISTICS = {"CI": "true", "NNCF_CI": "1"}
"""What OpenVINO and NNCF look at before they report their use to their makers."""


def convert_in_child(files: ModelFiles, task: TaskName, layout: str, target: Path) -> None:
    """Write the fp32 network and the tokenizer to `target`, an existing folder.

    Args:
        layout: name of the layout in which the network is to take texts.

    Raises:
        ModelUnavailable: the model cannot be converted; the message ends with the reason.
        OutOfMemory: the child was stopped for want of memory.
    """
    _run_child(
        files.name,
        {
            "act": "convert",
            "files": {**asdict(files), "folder": str(files.folder)},
            "task": task,
            "layout": layout,
            "target": str(target),
        },
    )


def quantize_in_child(name: str, source: Path, layout: str, tokens: RaggedTokens, target: Path) -> None:
    """Write the int8 network made from the one in folder `source`, calibrated on texts, to the folder `target`.

    Args:
        name: the model's, for messages.
        layout: name of the layout in which the network takes texts.

    Raises:
        ModelUnavailable: the model cannot be quantised; the message ends with the reason.
        OutOfMemory: the child was stopped for want of memory.
    """
    types = np.zeros(0, np.int32) if tokens.types is None else tokens.types
    np.savez(target / _CALIBRATION_FILE, ids=tokens.ids, offsets=tokens.offsets, types=types)
    _run_child(name, {"act": "quantize", "source": str(source), "layout": layout, "target": str(target)})
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


def _convert(files: ModelFiles, task: TaskName, layout: str, target: Path) -> None:
    import openvino as ov
    import torch

    from bge_pipeline.embedding.networks import PackedRowsNetwork, PaddedNetwork, ScoringNetwork
    from bge_pipeline.embedding.weights import load_transformer

    tokenizer = Tokenizer(files)
    kind = PackedRowsNetwork if layout == PackedRows.name else PaddedNetwork
    network = (kind if task == "embed texts" else ScoringNetwork)(load_transformer(files, task))
    names = [name for name in network.inputs if name != "token_type_ids" or tokenizer.has_types]
    # Values that are valid for every input, whichever way it is used: a token id, a mask, a type, and the first of a text.
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in names}
    if "position_ids" in example:
        example["position_ids"].zero_()
    converted = ov.convert_model(network, example_input=example)
    for port in converted.inputs:
        port.get_tensor().set_names(port.names & example.keys())
    ov.save_model(converted, str(target / MODEL_FILE), compress_to_fp16=False)
    tokenizer.save(target / TOKENIZER_FILE)


def _quantize(source: Path, layout_name: str, target: Path) -> None:
    with np.load(target / _CALIBRATION_FILE) as arrays:
        tokens = RaggedTokens(arrays["ids"], arrays["offsets"], arrays["types"] if len(arrays["types"]) else None)

    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(source / MODEL_FILE)
    layout = layout_named(layout_name, pad_id=0)
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
    try:
        _do(job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told in one line
        # PyTorch's tracer says what is wrong first, and then shows pages of graphs.
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        sys.exit(f"{type(error).__name__}: {reason.strip()}")


def _do(job: dict[str, Any]) -> None:
    target = Path(job["target"])
    if job["act"] == "convert":
        files = ModelFiles(**{**job["files"], "folder": Path(job["files"]["folder"])})
        _convert(files, job["task"], job["layout"], target)
    else:
        _quantize(Path(job["source"]), job["layout"], target)


if __name__ == "__main__":
    _main()
