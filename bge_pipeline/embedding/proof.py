"""The proof that a faster way to run a model gives the vectors of sentence-transformers, and the folder of verdicts.

A verdict holds for one model, device and precision, and for the source and the libraries with which it was reached.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from bge_pipeline.embedding.agreement import Agreement
from bge_pipeline.embedding.calibration import CalibrationTexts, sample_texts
from bge_pipeline.embedding.models import SentenceModel
from bge_pipeline.embedding.openvino.recipe import digest_of_source_and_libraries

_log = logging.getLogger(__name__)

PROOF_BOUNDS = {"min_cosine": 0.999}
"""The least cosine between the vectors of any text. All-MiniLM-L6-v2 in bf16: 0.99995 on OpenVINO, 0.99988 on PyTorch;
in fp32 one but for rounding."""

PROOF_TEXTS = 64

_LONGEST_CHARACTERS = 2_000
"""Of the table's texts, so that a proof costs about as much with pages as with sentences."""

_READS_LITTLE_TOKENS = 1_024
"""A model that reads no more than this is given a text of 10,000 words; one that reads more would take minutes for it."""

_LIBRARIES = ("openvino", "sentence-transformers", "tokenizers", "torch", "transformers")

_ROOMS = ("attention", "device", "families", "layouts", "layouts.end_to_end", "layouts.packed_rows", "layouts.padded")
_SOURCES = tuple(
    f"bge_pipeline.embedding.{module}"
    for module in (
        *_ROOMS, "library", "networks", "openvino.backend", "openvino.conversion", "openvino.layouts", "pooling", "reference",
        "tasks", "tokenizer", "torch_backend", "transformer", "weights",
    )
)  # fmt: skip
"""The modules that take part in either way."""


def odd_texts(max_tokens: int) -> list[str]:
    """Texts on which ways to run a model come apart first, for one that reads so many tokens of a text."""
    words = 10_000 if max_tokens <= _READS_LITTLE_TOKENS else 1_500
    return [
        "",
        " \n\t ",
        "a",
        " ".join(f"word{number % 977} and" for number in range(words // 2)),
        "x" * 3_000,
        "0123456789 " * 40,
        "😀 👩‍👩‍👧‍👦 🇩🇪 is how it went 🎉🎉🎉",
        "النص العربي يُكتب من اليمين إلى اليسار، وهذه جملة للتجربة.",
        "漢字とかな交じりの文。中文没有空格。",
        "control\x01characters\x1fand\x7fodd\u200bspaces\u00a0in\u2028one\ufefftext",
        "ÜNÏCÖDÉ e\u0301 combining, ﬁ ligature, ½ ²",
        "<b>markup</b> & [MASK] [SEP] </s> <pad> {braces} `code`",
    ]


def proof_texts(model: SentenceModel, calibration_texts: CalibrationTexts | None) -> list[str]:
    """`PROOF_TEXTS` texts: the table's where they can be had, docstrings where not, and the odd ones."""
    odd = odd_texts(model.files.max_tokens)
    own = [text[:_LONGEST_CHARACTERS] for text in (calibration_texts() if calibration_texts else [])]
    return odd + sample_texts(own, PROOF_TEXTS - len(odd))


def compare_with_reference(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> Agreement:
    """Agreement of unit vectors (n, dimensions) with those of sentence-transformers, text by text.

    A text of which the library makes no vector, having found no token in it, is not compared.
    """
    is_vector = np.abs(np.linalg.norm(reference, axis=1) - 1) < 1e-3
    cosines = np.einsum("ij,ij->i", vectors[is_vector], reference[is_vector], dtype=np.float64)
    if not len(cosines):
        return Agreement(0, {"mean_cosine": 0.0, "min_cosine": 0.0}, PROOF_BOUNDS)
    figures = {"mean_cosine": float(cosines.mean()), "min_cosine": float(cosines.min())}
    return Agreement(len(cosines), figures, PROOF_BOUNDS)


class Proofs:
    """The verdicts on one model, a file each.

    Args:
        folder: holds those of all models.
    """

    def __init__(self, folder: Path, model: SentenceModel) -> None:
        self._folder = folder
        declared = json.dumps([model.files.config, model.files.tokenizer_config], sort_keys=True)
        self._model = f"{model.space('fp32').fingerprint}-{hashlib.sha256(declared.encode()).hexdigest()[:8]}"

    def verdict(self, library: str, device: str, precision: str, prove: Callable[[], Agreement]) -> Agreement:
        """The verdict on that way to run the model; the first who asks proves it, and who asks meanwhile waits.

        Where the folder cannot be written, everybody proves for himself.

        Args:
            library, device, precision: the way.
            prove: makes the comparison.
        """
        path = self._path(library, device, precision)
        if (known := _read(path)) is not None:
            return known
        with _alone(path):
            if (known := _read(path)) is not None:
                return known
            found = prove()
            _write(path, found)
        return found

    def _path(self, library: str, device: str, precision: str) -> Path:
        way = re.sub(r"[^a-z0-9]+", "-", f"{library} {_hardware(device)} {precision}".lower())
        made_with = digest_of_source_and_libraries(_SOURCES, _LIBRARIES)
        return self._folder / f"{self._model}-{way}-{made_with}.json"


@cache
def _hardware(device: str) -> str:
    """What a device is, whichever number it has here."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process and thread at a time for a verdict, as far as the folder can be written."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        except OSError as error:
            _log.warning("%s cannot be written, and so the verdict is not kept: %s", path.parent, error)
        yield


def _read(path: Path) -> Agreement | None:
    try:
        return Agreement(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, found: Agreement) -> None:
    """At once or not at all, for a reader that takes no lock."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(found.as_dict(), file)
        Path(file.name).replace(path)
    except OSError as error:
        _log.warning("the verdict cannot be kept in %s: %s", path.parent, error)
