"""Variables of earlier versions keep working, and say what to write instead."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bge_pipeline import old_spellings
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import load_settings


@pytest.fixture(autouse=True)
def _nothing_noted_yet() -> None:
    old_spellings._note.cache_clear()


@pytest.mark.parametrize(
    ("old", "value", "field", "expected"),
    [
        ("EMBEDDINGS_PROVIDER", "openai", "embedding_provider", "openai"),
        ("EMBEDDINGS_MODEL", "intfloat/e5-small-v2", "embedding_model", "intfloat/e5-small-v2"),
        ("EMBEDDINGS_DIM", "768", "embedding_dimensions", 768),
        ("EMBEDDINGS_DEVICE", "cuda:1", "embedding_device", "cuda:1"),
        ("FORCE_CPU_ONLY", "1", "embedding_device", "cpu"),
        ("FORCE_CPU_ONLY", "false", "embedding_device", "auto"),
        ("EMBEDDING_PROFILE", "Quality", "embedding_model", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"),
        ("EMBEDDING_PROFILE", "quality", "embedding_dimensions", 1536),
        ("EMBEDDING_PROFILE", "speed", "embedding_model", "BAAI/bge-small-en-v1.5"),
        ("EMBEDDING_PROFILE", "speed", "embedding_dimensions", 384),
    ],
)
def test_an_old_spelling_is_understood_in_the_environment_and_in_dotenv(
    old: str, value: str, field: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text(f"{old}={value}\n")
    assert getattr(load_settings(), field) == expected

    Path(".env").unlink()
    monkeypatch.setenv(old, value)
    assert getattr(load_settings(), field) == expected


def test_the_new_spelling_wins_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDINGS_MODEL", "old/model")
    monkeypatch.setenv("EMBEDDINGS_DIM", "768")
    monkeypatch.setenv("FORCE_CPU_ONLY", "1")
    Path(".env").write_text("EMBEDDING_MODEL=new/model\nEMBEDDING_DEVICE=cuda\n")

    settings = load_settings(embedding_dimensions=512)

    assert (settings.embedding_model, settings.embedding_device) == ("new/model", "cuda")
    assert settings.embedding_dimensions == 512


def test_a_profile_gives_model_and_dimensions_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_PROFILE", "quality")
    monkeypatch.setenv("EMBEDDINGS_MODEL", "BAAI/bge-small-en-v1.5")

    assert load_settings().embedding_dimensions == 384


def test_forcing_the_cpu_wins_over_an_old_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDINGS_DEVICE", "cuda")
    monkeypatch.setenv("FORCE_CPU_ONLY", "yes")

    assert load_settings().embedding_device == "cpu"


def test_each_old_spelling_is_noted_once_with_what_to_write_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "bge_pipeline")
    monkeypatch.setenv("EMBEDDINGS_DIM", "768")
    monkeypatch.setenv("EMBEDDING_PROFILE", "speed")

    load_settings()
    load_settings()

    assert caplog.messages == [
        "EMBEDDINGS_DIM=768 is deprecated and still understood: set EMBEDDING_DIMENSIONS=768 instead",
        (
            "EMBEDDING_PROFILE=speed is deprecated and still understood: "
            "set EMBEDDING_MODEL=BAAI/bge-small-en-v1.5 and EMBEDDING_DIMENSIONS=384 instead"
        ),
    ]


def test_a_shadowed_old_spelling_is_noted_as_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "bge_pipeline")
    monkeypatch.setenv("EMBEDDINGS_MODEL", "old/model")
    monkeypatch.setenv("EMBEDDING_MODEL", "new/model")

    load_settings()

    assert caplog.messages == ["EMBEDDINGS_MODEL=old/model is deprecated and ignored: EMBEDDING_MODEL is set otherwise"]


@pytest.mark.parametrize(
    ("name", "held", "expected"),
    [("EMBEDDING_PROFILE", "fast", "speed, quality"), ("FORCE_CPU_ONLY", "perhaps", "1, true, yes, on, 0, false")],
)
def test_a_bad_value_names_the_variable_what_it_held_and_what_it_may_hold(
    name: str, held: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, held)

    with pytest.raises(ConfigurationError, match=name) as caught:
        load_settings()

    assert held in caught.value.message
    assert expected in caught.value.message


def test_an_unknown_provider_is_refused_with_the_providers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDINGS_PROVIDER", "nomic")

    with pytest.raises(ConfigurationError, match=r"EMBEDDING_PROVIDER: .*'local' or 'openai' \(held 'nomic'\)"):
        load_settings()
