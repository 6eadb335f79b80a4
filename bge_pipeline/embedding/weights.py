"""A transformer's weights, loaded by transformers: whole, in fp32, and without running code that comes with them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from bge_pipeline.embedding.families import family_of, own_code
from bge_pipeline.embedding.memory import short_of_memory
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.tasks import TaskName
from bge_pipeline.errors import ModelUnavailable, RandomWeights

_log = logging.getLogger(__name__)


def load_transformer(files: ModelFiles, task: TaskName) -> Any:
    """The model of transformers, on the CPU, with a head where its task is to score.

    Raises:
        ModelUnavailable: the files are no transformer that `transformers` can load, or lack part of its weights.
        OutOfMemory: the weights do not fit into memory.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    embeds = task == "embed texts"
    kind = AutoModel if embeds else AutoModelForSequenceClassification
    try:
        with quiet_transformers(), short_of_memory(f"no memory for the weights of {files.name}"):
            # Code that comes with weights is never run: it could do anything.
            config = AutoConfig.from_pretrained(str(files.folder), trust_remote_code=False)
            _configure(config, files)
            loaded, report = kind.from_pretrained(
                str(files.folder),
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelUnavailable(f"{files.name}: transformers cannot load {files.folder}: {error}") from error
    except UnpicklingError as error:
        raise more_than_tensors(files.name) from error
    require_whole(files.name, type(loaded).__name__, report["missing_keys"], embeds=embeds)
    return loaded.eval().requires_grad_(False)


def require_whole(name: str, network: str, missing_keys: Iterable[str], *, embeds: bool) -> None:
    """Raise RandomWeights where part of a network's weights was not in the files.

    Args:
        name: the model's.
        network: name of the class.
        missing_keys: as transformers reports them.
        embeds: a sentence model pools for itself and never looks at the pooler, which many leave out.
    """
    missing = sorted(key for key in missing_keys if not embeds or "pooler" not in key)
    if missing:
        raise RandomWeights(
            f"{name}: its weights lack {len(missing)} of the tensors of {network}, {missing[0]} for one, which would be random",
            next_step="copy the model again; for one that brings its own network (auto_map in config.json), read its code and "
            "set TRUST_REMOTE_CODE",
        )


def more_than_tensors(name: str) -> ModelUnavailable:
    """What is said of a model whose pickled weights PyTorch's restricted loader refused."""
    return ModelUnavailable(
        f"{name}: its weights in pickle's format hold more than tensors, and nothing of that is run",
        next_step="take a revision of the model with model.safetensors, from its makers",
    )


def _configure(config: Any, files: ModelFiles) -> None:
    """Tell transformers how the model's family was trained, and warn of code that is not run."""
    config.use_cache = False  # keys and values of earlier tokens are for generating text
    family = family_of(files.config)
    for name, value in family.configuration.items():
        setattr(config, name, value)
    code = own_code(files.config)
    if code not in (None, family.own_code):
        _log.warning(
            "%s: its folder brings its own code (%s), which is not run; transformers' own %s takes its place, so compare some "
            "vectors with the publisher's",
            files.name,
            code,
            config.model_type,
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no report about unused weights on the terminal while a model loads."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_progress_bar:
            transformers_logging.enable_progress_bar()
