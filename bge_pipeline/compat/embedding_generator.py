"""EmbeddingGenerator: texts to lists of floats, by whatever EMBEDDING_PROVIDER and EMBEDDING_MODEL name."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.forked import in_forked_child
from bge_pipeline.settings import Settings, load_settings, settings_from_env

_loading = threading.Lock()


class EmbeddingGenerator:
    """Embeds texts as passages. Thread-safe; loads no model before the first text.

    A local model runs in EmbeddingsService, which asks the endpoint of EMBEDDING_API_URL with EMBEDDING_PROVIDER=openai.
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
        vectors: list[list[float]] = self._service().encode_texts(texts).tolist()
        return vectors

    def generate_single_embedding(self, text: str) -> list[float]:
        """The vector of one text."""
        return self.generate_embeddings([text])[0]

    def _service(self) -> EmbeddingsService:
        if self._shares_service:
            return EmbeddingsService.init_from_env(self._settings)
        with _loading:
            return _own_service(self._settings)


@lru_cache(maxsize=2)
def _own_service(settings: Settings) -> EmbeddingsService:
    """The service of a model that is not the configured one, kept for the next generator that names it."""
    return EmbeddingsService.from_settings(settings)


def _forget_in_child() -> None:
    """A child makes services of its own, as it does with the process-wide one."""
    global _loading  # noqa: PLW0603
    _loading = threading.Lock()
    _own_service.cache_clear()


in_forked_child(_forget_in_child)
