"""Texts on which an int8 model is calibrated and judged: the user's own, or prose that every machine has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.agreement import Agreement, compare_scores, compare_vectors
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.tokens import RaggedTokens

CalibrationTexts = Callable[[], Sequence[str]]
"""Gives texts like those that will be embedded; asked only when an int8 model has to be made."""

_TEXTS = 384
_SHARE_TO_CALIBRATE = 3
"""Every third text calibrates, the others judge."""

_DOCUMENTED_MODULES = (
    "argparse", "collections", "configparser", "csv", "datetime", "difflib", "email.message", "fractions", "functools",
    "gzip", "heapq", "http.client", "inspect", "ipaddress", "json", "logging", "os", "pathlib", "pickle", "random", "re",
    "shutil", "socket", "sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading",
    "types", "typing", "unittest", "urllib.parse", "uuid", "warnings", "zipfile",
)  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """How an int8 model of one kind is calibrated and judged.

    Attributes:
        calibrate: tokens to calibrate on.
        held_out: tokens of other texts, to judge it by.
        compare: outputs of int8 and of fp32 on the held-out texts to their agreement.
    """

    calibrate: Callable[[Tokenizer], RaggedTokens]
    held_out: Callable[[Tokenizer], RaggedTokens]
    compare: Callable[[NDArray[np.float32], NDArray[np.float32]], Agreement]


def vector_guard(calibration_texts: CalibrationTexts | None, prompt: str = "") -> Guard:
    """The guard of a model that embeds texts: vectors must agree."""
    texts = _sampler(calibration_texts)
    return Guard(
        calibrate=lambda tokenizer: tokenizer.texts([prompt + text for text in _to_calibrate(texts())])[0],
        held_out=lambda tokenizer: tokenizer.texts([prompt + text for text in _held_out(texts())])[0],
        compare=compare_vectors,
    )


def score_guard(calibration_texts: CalibrationTexts | None) -> Guard:
    """The guard of a cross-encoder: pairs of a text's beginning with other texts must be ranked alike."""
    texts = _sampler(calibration_texts)
    return Guard(
        calibrate=lambda tokenizer: _pairs(tokenizer, _to_calibrate(texts())),
        held_out=lambda tokenizer: _pairs(tokenizer, _held_out(texts())),
        compare=compare_scores,
    )


def sample_texts(texts: Sequence[str], count: int) -> list[str]:
    """`count` distinct texts, spread evenly over those given; topped up with docstrings when there are too few."""
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) < count:
        known = set(distinct)
        more = [text for text in docstrings() if text not in known]
        distinct += _spread(more, count - len(distinct))
    return _spread(distinct, count)


def docstrings() -> list[str]:
    """Docstrings of the standard library's modules, classes and functions, in a fixed order, each once."""
    return list(dict.fromkeys(chain.from_iterable(_docstrings_of(name) for name in _DOCUMENTED_MODULES)))


def _docstrings_of(module_name: str) -> list[str]:
    module = import_module(module_name)
    members = [member for name, member in sorted(vars(module).items()) if not name.startswith("_")]
    documented = [module, *(member for member in members if inspect.isroutine(member) or inspect.isclass(member))]
    return [text for member in documented if (text := inspect.getdoc(member))]


def _spread(texts: list[str], count: int) -> list[str]:
    if len(texts) <= count:
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]


def _sampler(calibration_texts: CalibrationTexts | None) -> Callable[[], list[str]]:
    return cache(lambda: sample_texts(calibration_texts() if calibration_texts else [], _TEXTS))


def _to_calibrate(texts: list[str]) -> list[str]:
    return texts[::_SHARE_TO_CALIBRATE]


def _held_out(texts: list[str]) -> list[str]:
    return [text for index, text in enumerate(texts) if index % _SHARE_TO_CALIBRATE]


def _pairs(tokenizer: Tokenizer, texts: list[str]) -> RaggedTokens:
    """Every text after the beginning of the one before it or of itself, in turn, so that some pairs match."""
    queries = [" ".join(texts[index - index % 2].split()[:12]) for index in range(len(texts))]
    return tokenizer.pairs(queries, texts)[0]
