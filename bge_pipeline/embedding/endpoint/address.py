"""Which model is asked where, and the embedding space of its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import ModelSettings
from bge_pipeline.space import EmbeddingSpace

_OPENAI_HOST = "api.openai.com"
_CHOOSABLE_DIMENSIONS = "text-embedding-3"
"""OpenAI's models that accept `dimensions`; other models and servers may refuse the field."""
_REVISION = "openai:"
"""Begins the revision of a space whose vectors an endpoint made; the rest is the server's name of the model."""


@dataclass(frozen=True)
class Address:
    """One model behind one endpoint.

    Attributes:
        url: base URL, to which `/embeddings` is added.
        model: name of the model there.
        dimensions: what every vector must have.
        asks_dimensions: whether the server is told so.
        served_model: name of the model in the server's answers, where it is another; else None.
        key: sent as a bearer token, unless None. Shown by nothing.
    """

    url: str
    model: str
    dimensions: int
    asks_dimensions: bool
    served_model: str | None
    key: SecretStr | None

    @classmethod
    def from_settings(cls, settings: ModelSettings) -> Address:
        """The endpoint of EMBEDDING_API_URL.

        Raises:
            ConfigurationError: a variable that it needs is missing or wrong.
        """
        if "embedding_model" not in settings.model_fields_set:
            raise ConfigurationError(
                "EMBEDDING_PROVIDER=openai: expected the endpoint's name of the model in EMBEDDING_MODEL, which is not set",
                next_step="EMBEDDING_MODEL=text-embedding-3-small EMBEDDING_DIMENSIONS=1536, for example",
            )
        key = settings.embedding_api_key
        if key is not None and not key.get_secret_value():
            key = None
        if key is None and urlsplit(settings.embedding_api_url).hostname == _OPENAI_HOST:
            raise ConfigurationError(f"EMBEDDING_API_KEY: expected a key for {_OPENAI_HOST}, which is not set")
        asks = settings.embedding_ask_dimensions
        return cls(
            url=settings.embedding_api_url,
            model=settings.embedding_model,
            dimensions=settings.embedding_dimensions,
            asks_dimensions=asks == "always"
            or (asks == "auto" and settings.embedding_model.startswith(_CHOOSABLE_DIMENSIONS)),
            served_model=settings.embedding_served_model,
            key=key,
        )

    @property
    def host(self) -> str:
        """Host and port, as people name the endpoint."""
        return urlsplit(self.url).netloc

    def without_key(self, said: str) -> str:
        """What a server or a library said, without the key, should it be repeated there."""
        return said.replace(self.key.get_secret_value(), "[key]") if self.key is not None else said


def endpoint_space(settings: ModelSettings) -> EmbeddingSpace:
    """The embedding space of the configured endpoint: server's model name, dimensions, prompts and length of a text.

    The address is no part of it: the same model may move to another host, or have several.
    """
    return EmbeddingSpace(
        model=settings.embedding_model,
        revision=f"{_REVISION}{settings.embedding_model}",
        dimensions=settings.embedding_dimensions,
        pooling="endpoint",
        query_prompt=settings.embedding_query_prompt or "",
        passage_prompt=settings.embedding_passage_prompt or "",
        max_tokens=settings.embedding_text_tokens,
        precision="remote",
    )


def is_of_endpoint(space: EmbeddingSpace) -> bool:
    """Whether an endpoint made the vectors of a recorded space."""
    return space.revision.startswith(_REVISION)


def is_reachable_for(settings: ModelSettings) -> bool:
    """Whether the settings say where an endpoint is, though another model may be the configured one."""
    named = {"embedding_api_url", "embedding_api_key"} & settings.model_fields_set
    return settings.embedding_provider == "openai" or bool(named)


def would_send_unasked(space: EmbeddingSpace, settings: ModelSettings) -> bool:
    """Whether the endpoint of a recorded space would be sent texts though the settings name a model on this machine."""
    return settings.embedding_provider != "openai" and is_of_endpoint(space) and is_reachable_for(settings)


def settings_for(space: EmbeddingSpace, settings: ModelSettings) -> dict[str, object]:
    """The settings that ask an endpoint for vectors of a recorded space.

    The name that answers bear is kept where the space's model is the configured one, for which it was set.
    """
    model = space.revision.removeprefix(_REVISION)
    return {
        "embedding_provider": "openai",
        "embedding_model": model,
        "embedding_dimensions": space.dimensions,
        "embedding_query_prompt": space.query_prompt or None,
        "embedding_passage_prompt": space.passage_prompt or None,
        "embedding_text_tokens": space.max_tokens,
        "embedding_served_model": settings.embedding_served_model if settings.embedding_model == model else None,
    }
