"""From settings to an encoder or a reranker: which model, on which device, run by which library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline.settings import Settings

CalibrationTexts = Callable[[], Sequence[str]]
"""Gives texts like those that will be embedded; asked only when an int8 model has to be made."""


def load_encoder(settings: Settings, calibration_texts: CalibrationTexts | None = None) -> QueryEncoder:
    """The encoder that the settings ask for.

    Raises:
        ConfigurationError: the model does not have EMBEDDING_DIMENSIONS dimensions, or cannot run as asked.
        ModelUnavailable: the model or the library that runs it cannot be loaded.
    """
    if settings.embedding_model == "hashing":
        return HashingEncoder(settings.embedding_dimensions)
    raise ModelUnavailable(f"EMBEDDING_MODEL={settings.embedding_model}: only `hashing` can be loaded so far")
