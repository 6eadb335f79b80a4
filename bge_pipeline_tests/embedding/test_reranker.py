import logging
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from bge_pipeline.embedding import reranker as reranker_module
from bge_pipeline.embedding.networks import ScoringNetwork
from bge_pipeline.embedding.reranker import SMALLER_MODEL, load_reranker
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable, OutOfMemory

QUERY = "How do I delete a key from a dictionary?"
DOCS = ["Use del d[key].", "", "The quick brown fox. " * 30, "word " * 1_000, "Sockets listen."]


@pytest.fixture
def settings(settings, tiny_cross_encoder):
    return settings.model_copy(
        update={
            "embedding_model": "hashing",
            "embedding_backend": "torch",
            "embedding_precision": "fp32",
            "reranker_model": str(tiny_cross_encoder),
            "enable_reranker": True,
        }
    )


@pytest.fixture(scope="module")
def expected(tiny_cross_encoder):
    """What transformers makes of each pair on its own."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_cross_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_cross_encoder)
    with torch.inference_mode():
        options = {"truncation": "longest_first", "max_length": 512, "return_tensors": "pt"}
        pairs = (tokenizer([(QUERY, doc)], **options) for doc in DOCS)
        return np.array([float(model(**pair).logits[0, 0]) for pair in pairs], np.float32)


def test_scores_are_those_of_the_model_in_the_order_of_the_passages(settings, expected):
    scores = load_reranker(settings).score(QUERY, DOCS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.thorough
def test_the_same_scores_come_from_openvino(settings, expected):
    pytest.importorskip("openvino")
    reranker = load_reranker(settings.model_copy(update={"embedding_backend": "openvino"}))
    np.testing.assert_allclose(reranker.score(QUERY, DOCS), expected, atol=1e-3)
    reranker.close()


def test_a_quantised_reranker_is_judged_by_how_it_ranks(settings, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr("bge_pipeline.embedding.calibration._TEXTS", 48)
    options = {"embedding_backend": "openvino", "embedding_precision": "int8"}
    reranker = load_reranker(settings.model_copy(update=options))
    verdict = reranker.backend.quantization
    assert set(verdict.figures) == {"rank_correlation"}
    assert (reranker.backend.precision == "int8") == verdict.is_enough
    reranker.close()


def test_ranks_are_indices_best_first(settings, expected):
    reranker = load_reranker(settings)
    assert reranker.rank(QUERY, DOCS) == np.argsort(-expected).tolist()
    assert reranker.rank(QUERY, DOCS, top_k=2) == np.argsort(-expected)[:2].tolist()
    assert reranker.rank(QUERY, []) == []


def test_the_service_reranks_when_asked_to_and_keeps_the_order_otherwise(settings, expected):
    service = EmbeddingsService.from_settings(settings)
    assert service.rerank(QUERY, DOCS, top_k=3) == np.argsort(-expected)[:3].tolist()
    service.shutdown()
    without = EmbeddingsService.from_settings(settings.model_copy(update={"enable_reranker": False}))
    assert without.rerank(QUERY, DOCS, top_k=3) == [0, 1, 2]


def test_without_memory_for_the_large_model_the_smaller_one_is_used_and_said_so(settings, monkeypatch, caplog):
    tried = []
    load = reranker_module._load

    def small_memory(name, settings, calibration_texts):
        tried.append(name)
        if name != SMALLER_MODEL:
            raise MemoryError(f"no memory for {name}")
        return load(settings.reranker_model, settings, calibration_texts)

    monkeypatch.setattr(reranker_module, "_load", small_memory)
    reranker = load_reranker(settings)
    assert reranker is not None
    assert tried == [settings.reranker_model, SMALLER_MODEL]
    assert f"trying {SMALLER_MODEL}" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.fixture
def large_and_small(settings, tiny_cross_encoder, tmp_path, monkeypatch):
    """Settings whose RERANKER_MODEL has a smaller one beside it: the same network, but for its last layer's bias."""
    from transformers import AutoModelForSequenceClassification

    small = tmp_path / "small"
    shutil.copytree(tiny_cross_encoder, small)
    network = AutoModelForSequenceClassification.from_pretrained(small)
    network.classifier.bias.data += 100
    network.save_pretrained(small)
    monkeypatch.setattr(reranker_module, "SMALLER_MODEL", str(small))
    return settings


@pytest.fixture
def memory_on(monkeypatch):
    """Makes the device run out of memory for networks: for good, in `.to(device)` or in the forward pass."""

    def run_out(where, fits=lambda _: False):
        method = getattr(ScoringNetwork, where)

        def limited(network, *args, **kwargs):
            if not fits(network):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.14 GiB.")
            return method(network, *args, **kwargs)

        monkeypatch.setattr(ScoringNetwork, where, limited)

    return run_out


def is_small(network):
    return float(network.transformer.classifier.bias) > 50


def test_when_the_device_has_no_memory_for_the_large_network_the_small_one_is_loaded(
    large_and_small, memory_on, expected, caplog
):
    memory_on("to", is_small)
    reranker = load_reranker(large_and_small)
    np.testing.assert_allclose(reranker.score(QUERY, DOCS), expected + 100, atol=1e-3)
    assert "no memory on cpu for the network in fp32; trying" in caplog.text


def test_when_memory_runs_out_while_scoring_the_small_one_takes_over_for_good(
    large_and_small, memory_on, expected, caplog, monkeypatch
):
    reranker = load_reranker(large_and_small)
    large, gone = weakref.ref(reranker.backend._network), []
    load = reranker_module._load
    monkeypatch.setattr(reranker_module, "_load", lambda *args: gone.append(large() is None) or load(*args))
    memory_on("forward", is_small)

    scores = reranker.score(QUERY, DOCS)

    np.testing.assert_allclose(scores, expected + 100, atol=1e-3)
    np.testing.assert_allclose(reranker.score(QUERY, DOCS), scores)
    assert gone == [True]
    assert reranker.model == reranker_module.SMALLER_MODEL
    assert "out of memory on cpu with a single text" in caplog.text


def test_threads_that_run_out_of_memory_together_load_one_small_model(
    large_and_small, memory_on, expected, monkeypatch
):
    reranker, loaded = load_reranker(large_and_small), []
    load, start = reranker_module._load, threading.Barrier(4)
    monkeypatch.setattr(reranker_module, "_load", lambda *args: loaded.append(args[0]) or load(*args))
    memory_on("forward", is_small)

    def score(_):
        start.wait(timeout=30)
        return reranker.score(QUERY, DOCS)

    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(score, range(4)):
            np.testing.assert_allclose(scores, expected + 100, atol=1e-3)
    assert loaded == [reranker_module.SMALLER_MODEL]


def test_a_search_keeps_its_order_when_there_is_memory_for_neither(large_and_small, memory_on, caplog):
    service = EmbeddingsService.from_settings(large_and_small)
    memory_on("forward")
    assert service.rerank(QUERY, DOCS, top_k=3) == [0, 1, 2]
    assert "the reranker failed: out of memory on cpu with a single text" in caplog.text
    assert service.rerank(QUERY, DOCS, top_k=3) == [0, 1, 2]
    service.shutdown()


def test_when_the_small_network_does_not_load_either_that_is_said_at_each_search(large_and_small, memory_on, caplog):
    service = EmbeddingsService.from_settings(large_and_small)
    assert service.rerank(QUERY, DOCS, top_k=3) != [0, 1, 2]
    memory_on("forward")
    memory_on("to")
    for _ in range(2):
        assert service.rerank(QUERY, DOCS, top_k=3) == [0, 1, 2]
    assert caplog.text.count("the reranker failed: there was no memory for a reranker") == 2
    service.shutdown()


def test_without_a_small_one_at_hand_the_large_one_stays_until_there_is_memory_again(
    large_and_small, memory_on, expected, monkeypatch, caplog
):
    reranker = load_reranker(large_and_small)
    monkeypatch.setattr(reranker, "_smaller", "/no/such/folder")
    has_memory = []
    memory_on("forward", lambda _: has_memory)
    with pytest.raises(OutOfMemory):
        reranker.score(QUERY, DOCS)
    has_memory.append(True)
    np.testing.assert_allclose(reranker.score(QUERY, DOCS), expected, atol=1e-4)
    assert "there is no such folder; the larger one stays" in caplog.text


def test_when_no_reranker_loads_the_order_stays_and_that_is_said_once(settings, monkeypatch, caplog):
    def unreachable(name, *_):
        raise ModelUnavailable(f"RERANKER_MODEL={name} is not in the local cache and the model hub cannot be reached")

    monkeypatch.setattr(reranker_module, "_load", unreachable)
    service = EmbeddingsService.from_settings(settings)
    assert service.rerank(QUERY, DOCS, top_k=2) == [0, 1]
    assert service.rerank(QUERY, DOCS, top_k=2) == [0, 1]
    assert caplog.text.count("results stay in the order of the first stage") == 1


def test_a_model_that_is_no_cross_encoder_is_a_mistake_in_the_settings(settings, monkeypatch, tiny_cross_encoder):
    find = reranker_module.find_cross_encoder
    monkeypatch.setattr(
        reranker_module, "find_cross_encoder", lambda name, **options: replace(find(name, **options), max_tokens=16)
    )
    with pytest.raises(ConfigurationError, match="EMBEDDING_PRECISION=int8 runs on OpenVINO"):
        load_reranker(settings.model_copy(update={"embedding_precision": "int8"}))


def test_a_closed_reranker_says_so(settings):
    reranker = load_reranker(settings)
    reranker.close()
    with pytest.raises(EncodingError, match="shut down"):
        reranker.score(QUERY, DOCS)
