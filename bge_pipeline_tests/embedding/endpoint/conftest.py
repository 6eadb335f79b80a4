"""Encoders of a server that misbehaves where it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.endpoint.limits import shared_limits
from bge_pipeline.settings import Settings, load_settings
from bge_pipeline_tests.endpoint_server import KEY, EndpointServer, serving

MakeEncoder = Callable[..., EndpointEncoder]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    """A server of 8 dimensions."""
    with serving(8) as served:
        yield served


@pytest.fixture
def endpoint_settings(server: EndpointServer, tmp_path: Path) -> Callable[..., Settings]:
    """Settings that name the server; keywords override."""

    def make(**overrides: object) -> Settings:
        values: dict[str, object] = {
            "embedding_provider": "openai",
            "embedding_model": "some-model",
            "embedding_dimensions": 8,
            "embedding_api_url": server.url,
            "embedding_api_key": KEY,
            "bge_pipeline_home": tmp_path,
        }
        return load_settings(**(values | overrides))

    return make


@pytest.fixture
def make_encoder(endpoint_settings: Callable[..., Settings]) -> Iterator[MakeEncoder]:
    """Makes encoders of the server, and closes them."""
    made: list[EndpointEncoder] = []

    def make(**overrides: object) -> EndpointEncoder:
        made.append(EndpointEncoder(endpoint_settings(**overrides)))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()
    shared_limits.cache_clear()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited, in place of waiting; for its limits they have passed."""
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(slept))
    monkeypatch.setattr("bge_pipeline.embedding.endpoint.limits.time", clock)

    def sleep(_: object, seconds: float, _abandoned: object = None) -> None:
        if seconds > 0:
            slept.append(seconds)

    monkeypatch.setattr("bge_pipeline.embedding.endpoint.client.EndpointClient._sleep", sleep)
    return slept
