"""sentence-transformers and transformers themselves, asked: how a folder is loaded by them, and what they say of it.

Knows no model of ours; `reference` joins the two.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from bge_pipeline.embedding.memory import short_of_memory
from bge_pipeline.errors import ModelUnavailable

ALL_TOKENS = 2**31 - 1
"""Tokens read of a text where the model reads all of it."""

_patched = threading.Lock()


@dataclass(frozen=True)
class DeclaredByLibrary:
    """What the library says of a model that it has loaded; `max_tokens` is `ALL_TOKENS` where there is no end."""

    width: int
    max_tokens: int


@lru_cache(maxsize=8)
def declared_by_library(folder: Path, name: str, trusted_code: str | None = None) -> DeclaredByLibrary:
    """What a folder makes that declares too little: loaded once, on the CPU, and let go.

    Raises:
        ModelUnavailable: sentence-transformers cannot load it.
    """
    model = load_by_library(folder, name, device="cpu", trusted_code=trusted_code)
    width, longest = model.get_embedding_dimension(), model.get_max_seq_length()
    if width is None:
        raise ModelUnavailable(f"{name}: sentence-transformers does not know how many dimensions its vectors have")
    return DeclaredByLibrary(int(width), min(ALL_TOKENS, longest or ALL_TOKENS))


def width_by_transformers(folder: Path) -> int | None:
    """Dimensions of a transformer's states, whatever its family calls them; None for what is no text encoder."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None
    return getattr(config.get_text_config(), "hidden_size", None)


def load_by_library(
    folder: Path,
    name: str,
    *,
    device: str,
    truncate_dim: int | None = None,
    configuration: Mapping[str, Any] | None = None,
    trusted_code: str | None = None,
) -> Any:
    """The `SentenceTransformer` of a folder, in fp32.

    Args:
        name: the model's, for messages.
        device: as PyTorch names it.
        truncate_dim: dimensions to which its vectors are cut.
        configuration: what its transformer must be told to be run as it was trained.
        trusted_code: run the code that comes with it; the commit, where that is of another repository.

    Raises:
        RandomWeights: its files lack part of the weights.
        ModelUnavailable: the library cannot load it.
        OutOfMemory: there is no memory for it.
    """
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    from bge_pipeline.embedding.weights import more_than_tensors, quiet_transformers, require_whole

    pinned = {"code_revision": trusted_code} if trusted_code is not None else {}
    try:
        with quiet_transformers(), _loading_reports() as reports, short_of_memory(f"no memory on {device} for {name}"):
            model = SentenceTransformer(
                str(folder),
                device=device,
                truncate_dim=truncate_dim,
                trust_remote_code=trusted_code is not None,
                local_files_only=trusted_code is None,
                model_kwargs={"dtype": torch.float32} | pinned,
                config_kwargs=pinned,
            ).eval()
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(
            f"{name}: sentence-transformers cannot load {folder}: {error}",
            next_step=None if trusted_code else "where it brings code of its own, read that and set TRUST_REMOTE_CODE",
        ) from error
    except UnpicklingError as error:
        raise more_than_tensors(name) from error
    for network, missing in reports:
        require_whole(name, network, missing, embeds=True)
    for key, value in (configuration or {}).items():
        setattr(model.transformers_model.config, key, value)
    return model.requires_grad_(False)


@contextmanager
def _loading_reports() -> Iterator[list[tuple[str, list[str]]]]:
    """What transformers found missing in the weights of the networks that are loaded within, by the networks' classes.

    The library asks transformers for networks and not for this report, and a network with random layers looks like any other.
    """
    from transformers import PreTrainedModel

    reports: list[tuple[str, list[str]]] = []

    with _patched:
        original = PreTrainedModel.__dict__["from_pretrained"]  # another thread's would never be taken back

        def reporting(kind: type, *args: Any, **kwargs: Any) -> Any:
            wants_report = kwargs.pop("output_loading_info", False)
            model, report = original.__get__(None, kind)(*args, output_loading_info=True, **kwargs)
            reports.append((type(model).__name__, list(report["missing_keys"])))
            return (model, report) if wants_report else model

        PreTrainedModel.from_pretrained = classmethod(reporting)
        try:
            yield reports
        finally:
            PreTrainedModel.from_pretrained = original
