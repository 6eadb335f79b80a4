"""What makes a converted network: the source that builds it and the libraries that take part.

Where either changes, what was made before is another network, and a new one is made.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.abc import InspectLoader
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

SOURCES = (
    "bge_pipeline.embedding.families",
    "bge_pipeline.embedding.networks",
    "bge_pipeline.embedding.openvino.conversion",
    "bge_pipeline.embedding.openvino.layouts",
    "bge_pipeline.embedding.tokenizer",
    "bge_pipeline.embedding.weights",
)
"""The modules in which a converted network and its tokenizer are made."""

_LIBRARIES = ("openvino", "tokenizers", "torch", "transformers")

Kind = Literal["fp32", "int8"]
KINDS: tuple[Kind, Kind] = ("fp32", "int8")


@cache
def recipe(kind: Kind) -> str:
    """Eight hexadecimal digits that are others whenever a network might come out differently.

    Args:
        kind: what the network is converted to; int8 is made of fp32, by one library more.
    """
    return digest_of_source_and_libraries(SOURCES, (*_LIBRARIES, "nncf") if kind == "int8" else _LIBRARIES)


def digest_of_source_and_libraries(sources: tuple[str, ...], libraries: tuple[str, ...]) -> str:
    """Eight hexadecimal digits of the source of modules and the versions of libraries, none of which is loaded."""
    whole = hashlib.sha256()
    for line in (*(_version(name) for name in libraries), *(_source(name) for name in sources)):
        whole.update(hashlib.sha256(line.encode()).digest())
    return whole.hexdigest()[:8]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def _source(module: str) -> str:
    """Read, not imported: the parent of a conversion loads neither PyTorch nor transformers."""
    spec = find_spec(module)
    loader = spec.loader if spec else None
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    return source if source is not None else _version("bge-pipeline")
