"""The cache of converted models, and the guard that an int8 model passes before anybody uses it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from bge_pipeline.embedding.agreement import Agreement
from bge_pipeline.embedding.calibration import Guard
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.openvino.backend import OpenVinoBackend, best_precision, check_precision
from bge_pipeline.embedding.openvino.conversion import MODEL_FILE, TOKENIZER_FILE, convert_in_child, quantize_in_child
from bge_pipeline.embedding.openvino.layouts import best_layout, layout_named
from bge_pipeline.embedding.openvino.recipe import KINDS, recipe
from bge_pipeline.embedding.tasks import Task
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.errors import ModelUnavailable

_log = logging.getLogger(__name__)

_ABOUT_FILE = "about.json"
_SECONDS_PER_DAY = 86_400
_DAYS_KEPT = 30
"""How long a network by another recipe is kept: another environment may use the same folder."""


class ConvertedModels:
    """One model's converted networks, in folders that are named by model, kind and recipe.

    A folder appears whole or not at all, and only one process at a time makes one.

    Args:
        folder: holds all converted models.
        key: identifies the model and what decides how it is run.
        task: what its network is run for.
    """

    def __init__(self, folder: Path, key: str, files: ModelFiles, task: Task) -> None:
        self._fp32, self._int8 = (folder / f"{key}-{kind}-{recipe(kind)}" for kind in KINDS)
        self._files = files
        self._task = task

    def load(self, precision: str, guard: Guard) -> tuple[Tokenizer, OpenVinoBackend]:
        """The tokenizer and the network, converted first where that was not done yet.

        An int8 network that does not agree well enough with fp32 is not used: the backend then runs the best other
        precision, and its `quantization` says why.

        Raises:
            ConfigurationError: this processor does not compute in that precision.
            ModelUnavailable: the model cannot be converted.
            OutOfMemory: there is no memory to convert it.
        """
        check_precision(precision)
        if not _is_whole(self._fp32):
            self._make(self._fp32, self._convert)
        tokenizer = Tokenizer(self._files, self._fp32 / TOKENIZER_FILE)
        quantization = self._quantization(tokenizer, guard) if precision == "int8" else None
        if quantization is not None and quantization.is_enough:
            backend = self._backend(self._int8, "int8", tokenizer)
        else:
            precision = best_precision() if precision in ("auto", "int8") else precision
            backend = self._backend(self._fp32, precision, tokenizer)
        backend.quantization = quantization
        if quantization is not None and not quantization.is_enough:
            _log.warning(
                "int8 of %s was rejected and %s is used: %s. The verdict is kept in %s; remove that folder to try again",
                self._files.name,
                backend.precision,
                "; ".join(quantization.shortfalls),
                self._int8,
            )
        return tokenizer, backend

    def _quantization(self, tokenizer: Tokenizer, guard: Guard) -> Agreement:
        if not _is_whole(self._int8):
            _log.info("making an int8 model of %s and comparing it with fp32; this is done once", self._files.name)
            self._make(self._int8, lambda target: self._quantize(tokenizer, guard, target))
        return Agreement(**_read_about(self._int8)["agreement"])

    def _convert(self, target: Path) -> dict[str, Any]:
        _log.info("converting %s for OpenVINO; this is done once", self._files.name)
        layout = best_layout(self._files, self._task)
        convert_in_child(self._files, self._task.name, layout, target)
        return {"layout": layout}

    def _quantize(self, tokenizer: Tokenizer, guard: Guard, target: Path) -> dict[str, Any]:
        quantize_in_child(
            self._files.name, self._fp32, _read_about(self._fp32)["layout"], guard.calibrate(tokenizer), target
        )
        held_out = guard.held_out(tokenizer)
        int8, fp32 = (
            self._outputs(folder, precision, tokenizer, held_out)
            for folder, precision in ((target, "int8"), (self._fp32, "fp32"))
        )
        agreement = guard.compare(int8, fp32)
        if not agreement.is_enough:
            for path in target.iterdir():
                path.unlink()
        return {"agreement": agreement.as_dict()}

    def _backend(self, folder: Path, precision: str, tokenizer: Tokenizer) -> OpenVinoBackend:
        # An int8 network takes texts as the one that it was made from.
        layout = layout_named(_read_about(self._fp32)["layout"], tokenizer.pad_id)
        return OpenVinoBackend(folder / MODEL_FILE, layout, self._task, precision=precision)

    def _outputs(self, folder: Path, precision: str, tokenizer: Tokenizer, tokens: RaggedTokens) -> NDArray[np.float32]:
        backend = self._backend(folder, precision, tokenizer)
        try:
            return backend.run(tokens, max_texts=len(tokens))
        finally:
            backend.close()

    def _make(self, final: Path, make: Callable[[Path], dict[str, Any]]) -> None:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(final.parent / ".lock"):
                if _is_whole(final):
                    return
                with _temporary_folder(final) as temporary:
                    about = make(temporary) | {"model": self._files.name}
                    (temporary / _ABOUT_FILE).write_text(json.dumps(about, indent=2), encoding="utf-8")
                    shutil.rmtree(final, ignore_errors=True)
                    temporary.rename(final)
                _remove_old_recipes(final)
        except OSError as error:
            raise ModelUnavailable(
                f"{self._files.name} cannot be kept converted for OpenVINO in {final.parent}: {error.strerror or error}",
                next_step="set BGE_PIPELINE_HOME to a folder that this user may write to, with room for the model",
            ) from error


def _is_whole(folder: Path) -> bool:
    return (folder / _ABOUT_FILE).is_file()


def _read_about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / _ABOUT_FILE).read_text(encoding="utf-8"))
    return about


def _remove_old_recipes(current: Path) -> None:
    """Remove networks of the same model and kind that another recipe made long ago."""
    for other in current.parent.glob(f"{current.name.rpartition('-')[0]}*"):
        if other != current and _days_old(other) > _DAYS_KEPT:
            shutil.rmtree(other, ignore_errors=True)


def _days_old(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / _SECONDS_PER_DAY


@contextmanager
def _temporary_folder(final: Path) -> Iterator[Path]:
    """A folder beside the final one; those that a killed process left a day ago are removed."""
    for leftover in final.parent.glob(f".{final.name}-*"):
        if _days_old(leftover) > 1:
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
