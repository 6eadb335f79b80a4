"""Encoders on OpenVINO, whose conversions the tests of a run share."""

from pathlib import Path

import pytest

from bge_pipeline.embedding import calibration
from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.openvino.recipe import Kind, recipe


@pytest.fixture(autouse=True)
def _small_calibration(monkeypatch):
    monkeypatch.setattr(calibration, "_TEXTS", 48)


@pytest.fixture
def load(settings):
    encoders = []

    def make(**options):
        encoders.append(load_encoder(settings.model_copy(update={"embedding_backend": "openvino"} | options)))
        return encoders[-1]

    yield make
    for encoder in encoders:
        encoder.close()


def vectors_of(encoder, texts):
    return encoder.encode(encoder.tokenize(texts))


def folder_of(models: Path, key: str, kind: Kind) -> Path:
    """Where a converted network is kept."""
    return models / f"{key}-{kind}-{recipe(kind)}"
