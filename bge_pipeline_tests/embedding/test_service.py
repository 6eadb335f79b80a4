import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bge_pipeline.embedding import loading, service
from bge_pipeline.embedding.encoder import TextsRefused
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, EncodingError
from bge_pipeline.settings import load_settings


@pytest.fixture
def settings(settings):
    """The real model on PyTorch, so that nothing is converted."""
    return settings.model_copy(update={"embedding_backend": "torch", "embedding_precision": "fp32"})


@pytest.fixture(autouse=True)
def _no_service_is_left_behind():
    yield
    if EmbeddingsService._instance is not None:
        EmbeddingsService._instance.shutdown()


@pytest.fixture
def bundled_service(settings):
    embeddings = EmbeddingsService.from_settings(settings)
    yield embeddings
    embeddings.shutdown()


@pytest.fixture
def hashing():
    return load_settings(embedding_model="hashing")


def test_texts_that_are_refused_are_told_by_their_place_among_all_and_the_others_have_vectors(hashing, monkeypatch):
    class Picky(HashingEncoder):
        def encode(self, tokens, *, batch_size=None):
            vectors = super().encode(tokens, batch_size=batch_size)
            if len(tokens) > 2:
                raise TextsRefused("it", {2: "no"}, vectors)
            return vectors

    monkeypatch.setattr(service, "_WINDOW_TEXTS", 4)
    texts = [f"text {number}" for number in range(10)]
    with pytest.raises(TextsRefused, match="2 of 10 texts") as refusal:
        EmbeddingsService(Picky(), hashing).encode_texts(texts)
    assert dict(refusal.value.reasons) == {2: "no", 6: "no"}
    plain = HashingEncoder()
    np.testing.assert_array_equal(refusal.value.vectors, plain.encode(plain.tokenize(texts)))


def test_a_query_is_nearer_to_its_passage_than_to_another(bundled_service):
    passages = bundled_service.encode_texts(
        [
            "Use the del statement to remove an entry from a mapping.",
            "The server listens on a TCP port and accepts connections.",
        ]
    )
    queries = bundled_service.encode_queries(["how to delete a dictionary key", "open a network socket"])
    similarities = queries @ passages.T
    assert similarities.argmax(axis=1).tolist() == [0, 1]


def test_vectors_are_float32_of_unit_length_in_order(bundled_service):
    texts = ["a", "a much longer text about nothing in particular " * 5, "", "b"]
    vectors = bundled_service.encode_texts(texts, batch_size=2)
    assert (vectors.shape, vectors.dtype) == ((4, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(bundled_service.encode_texts([text])[0], vector, atol=1e-5)


def test_no_texts_give_no_vectors(bundled_service):
    assert bundled_service.encode_texts([]).shape == (0, 384)
    assert bundled_service.encode_queries([]).shape == (0, 384)


def test_the_service_says_what_it_is(bundled_service):
    assert bundled_service.dimensions == 384
    assert bundled_service.device == "cpu"
    assert bundled_service.space.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert bundled_service.quantization is None


def test_queries_get_the_prompt_and_passages_do_not(settings):
    embeddings = EmbeddingsService.from_settings(settings.model_copy(update={"embedding_query_prompt": "find: "}))
    np.testing.assert_allclose(embeddings.encode_queries(["cats"]), embeddings.encode_texts(["find: cats"]), atol=1e-6)
    assert not np.allclose(embeddings.encode_queries(["cats"]), embeddings.encode_texts(["cats"]), atol=1e-2)


def test_dimensions_that_do_not_match_are_refused_before_the_model_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(loading, "load_backend", pytest.fail)
    with pytest.raises(ConfigurationError, match=r"EMBEDDING_DIMENSIONS=512, but .* makes vectors of 384 dimensions"):
        EmbeddingsService.from_settings(settings.model_copy(update={"embedding_dimensions": 512}))


def test_one_service_serves_the_process_whichever_thread_asks(hashing, monkeypatch):
    made = []
    load_encoder = service.load_encoder
    monkeypatch.setattr(service, "load_encoder", lambda *args: made.append(1) or load_encoder(*args))
    with ThreadPoolExecutor(8) as pool:
        services = set(pool.map(lambda _: EmbeddingsService.init_from_env(hashing), range(32)))
    assert (len(services), len(made)) == (1, 1)


def test_another_service_can_be_had_after_shutdown(hashing):
    first = EmbeddingsService.init_from_env(hashing)
    assert EmbeddingsService.init_from_env() is first
    first.shutdown()
    assert EmbeddingsService.init_from_env(hashing) is not first


def test_other_settings_while_a_service_is_in_use_are_refused(hashing):
    EmbeddingsService.init_from_env(hashing)
    with pytest.raises(ConfigurationError, match="expected the settings that the process-wide EmbeddingsService"):
        EmbeddingsService.init_from_env(load_settings(embedding_model="hashing", embedding_dimensions=64))
    with pytest.raises(ConfigurationError, match="expected the settings"):
        EmbeddingsService.init_from_env(load_settings(embedding_model="hashing", trust_remote_code="0" * 40))
    others = {"target_table": "other", "rerank": "auto", "rerank_top_k": 50}
    assert EmbeddingsService.init_from_env(load_settings(embedding_model="hashing", **others)).dimensions == 384


def test_a_service_of_ones_own_is_not_the_shared_one(hashing):
    own = EmbeddingsService.from_settings(hashing)
    shared = EmbeddingsService.init_from_env(hashing)
    own.shutdown()
    assert EmbeddingsService.init_from_env() is shared


def test_after_shutdown_nothing_is_encoded(settings):
    embeddings = EmbeddingsService.from_settings(settings)
    embeddings.shutdown()
    with pytest.raises(EncodingError, match="shut down"):
        embeddings.encode_texts(["text"])


def test_many_texts_keep_their_order_over_window_borders(hashing, monkeypatch):
    monkeypatch.setattr(service, "_WINDOW_TEXTS", 10)
    embeddings = EmbeddingsService.from_settings(hashing)
    texts = [f"word{number}" for number in range(95)]
    together = embeddings.encode_texts(texts)
    assert together.tobytes() == b"".join(embeddings.encode_texts([text]).tobytes() for text in texts)


def test_several_threads_get_their_own_vectors(bundled_service):
    questions = [[f"question {number} of thread {thread}" for number in range(8)] for thread in range(4)]
    alone = [bundled_service.encode_texts(texts) for texts in questions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(bundled_service.encode_texts, questions))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_text_that_comes_twice_is_run_once(bundled_service, monkeypatch):
    backend, ran = bundled_service.encoder.backend, []
    run = backend.run
    monkeypatch.setattr(backend, "run", lambda tokens, **options: ran.append(len(tokens)) or run(tokens, **options))
    vectors = bundled_service.encode_texts(["[Music]", "other", "[Music]", "[Music]"])
    assert ran == [2]
    assert vectors[0].tobytes() == vectors[2].tobytes() == vectors[3].tobytes() != vectors[1].tobytes()
    tokens = bundled_service.encoder.tokenize(["[Music]", "other", "[Music]"])
    assert tokens.token_counts[0] == tokens.token_counts[2] != tokens.token_counts[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_makes_a_service_of_its_own():
    script = """
import os
from bge_pipeline.embedding.service import EmbeddingsService
parents = EmbeddingsService.init_from_env()
child = os.fork()
if child == 0:
    os._exit(0 if EmbeddingsService.init_from_env() is not parents else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"EMBEDDING_MODEL": "hashing"}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0


def test_importing_the_service_imports_no_heavy_library():
    script = (
        "import sys, bge_pipeline.embedding.service, bge_pipeline.embedding.reranker;"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'openvino', 'nncf', 'sklearn', 'scipy', 'dagster'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
