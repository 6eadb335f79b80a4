import logging
from dataclasses import replace

import numpy as np
import pytest

from bge_pipeline.embedding import reranker as reranker_module
from bge_pipeline.embedding.reranker import SMALLER_MODEL, load_reranker
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable

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
    monkeypatch.setattr(reranker_module, "find_cross_encoder", lambda name: replace(find(name), max_tokens=16))
    with pytest.raises(ConfigurationError, match="EMBEDDING_PRECISION=int8 runs on OpenVINO"):
        load_reranker(settings.model_copy(update={"embedding_precision": "int8"}))


def test_a_closed_reranker_says_so(settings):
    reranker = load_reranker(settings)
    reranker.close()
    with pytest.raises(EncodingError, match="shut down"):
        reranker.score(QUERY, DOCS)
