"""EmbeddingGenerator: texts to lists of floats, by whatever EMBEDDING_PROVIDER and EMBEDDING_MODEL name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache

from bge_pipeline.embedding.device import resolve_device
from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.embedding.loading import HASHING
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.reference import Reference
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import ModelSettings, Settings, load_settings, settings_from_env

logger = logging.getLogger(__name__)

_BATCH_SIZE = 32
"""Texts that sentence-transformers pads to one length, where EMBEDDING_BATCH_SIZE is not set; its own default."""

_loading = threading.Lock()


class EmbeddingGenerator:
    """Embeds texts as passages. Thread-safe; loads no model before the first text.

    A model runs in EmbeddingsService, which asks the endpoint of EMBEDDING_API_URL with EMBEDDING_PROVIDER=openai; a local
    one that the service does not serve (a module after the pooling, another pooling) runs in sentence-transformers.
    For search queries use `EmbeddingsService.encode_queries`, which knows the model's prompt for them.

    Args:
        model_name: in place of EMBEDDING_MODEL.
        embedding_provider: in place of EMBEDDING_PROVIDER.

    Raises:
        ConfigurationError: a variable has a value it may not have; the message names the values.
    """

    def __init__(self, model_name: str | None = None, embedding_provider: str | None = None) -> None:
        chosen = {"embedding_model": model_name, "embedding_provider": embedding_provider}
        overrides = {name: value for name, value in chosen.items() if value is not None}
        self._settings = load_settings(**overrides) if overrides else settings_from_env()
        self._shares_service = self._settings == settings_from_env() if overrides else True
        if self._settings.embedding_provider == "openai":
            Address.from_settings(self._settings)

    @property
    def provider(self) -> str:
        """`local` or `openai`."""
        return self._settings.embedding_provider

    @property
    def model_name(self) -> str:
        """Name of the model, as in EMBEDDING_MODEL."""
        return self._settings.embedding_model

    def get_embedding_dimension(self) -> int:
        """Length of every vector: EMBEDDING_DIMENSIONS, which the model must have."""
        return self._settings.embedding_dimensions

    def generate_embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of the texts, in order.

        Raises:
            ModelUnavailable: the model or the endpoint cannot be had.
            EncodingError: the texts cannot be embedded.
        """
        if not texts:
            return []
        if self.provider == "openai" or _is_served(self.model_name):
            vectors: list[list[float]] = self._service().encode_texts(texts).tolist()
            return vectors
        return _by_sentence_transformers(self._settings, texts)

    def generate_single_embedding(self, text: str) -> list[float]:
        """The vector of one text."""
        return self.generate_embeddings([text])[0]

    def _service(self) -> EmbeddingsService:
        if self._shares_service:
            return EmbeddingsService.init_from_env(self._settings)
        with _loading:
            return _own_service(self._settings)


@lru_cache(maxsize=8)
def _is_served(model_name: str) -> bool:
    """Whether EmbeddingsService runs models of this kind."""
    if model_name == HASHING:
        return True
    try:
        find_sentence_model(model_name)
    except ConfigurationError as error:
        logger.info("%s; running it in sentence-transformers", error.message)
        return False
    return True


@lru_cache(maxsize=2)
def _own_service(settings: Settings) -> EmbeddingsService:
    """The service of a model that is not the configured one, kept for the next generator that names it."""
    return EmbeddingsService.from_settings(settings)


def _by_sentence_transformers(settings: ModelSettings, texts: Sequence[str]) -> list[list[float]]:
    with _loading:
        model = _reference(settings)
    vectors = model.encode(texts, batch_size=settings.embedding_batch_size or _BATCH_SIZE)
    if vectors.shape[1] != settings.embedding_dimensions:
        raise ConfigurationError(
            f"EMBEDDING_DIMENSIONS={settings.embedding_dimensions}, but {settings.embedding_model} makes vectors of "
            f"{vectors.shape[1]} dimensions",
            next_step=f"set EMBEDDING_DIMENSIONS={vectors.shape[1]} or choose another EMBEDDING_MODEL",
        )
    result: list[list[float]] = vectors.tolist()
    return result


@lru_cache(maxsize=1)
def _reference(settings: ModelSettings) -> Reference:
    return Reference(settings.embedding_model, device=resolve_device(settings.embedding_device))
