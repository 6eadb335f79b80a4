import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bge_pipeline.embedding.library import load_by_library
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.reference import ReferenceEncoder
from bge_pipeline.errors import EncodingError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import TEXTS


def test_vectors_are_those_of_the_library_float32_and_of_unit_length(bundled, reference):
    encoder = ReferenceEncoder(bundled, device="cpu")
    vectors = encoder.encode(encoder.tokenize(TEXTS))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, reference, atol=1e-6)
    assert encoder.encode(encoder.tokenize([])).shape == (0, 384)


def test_tokens_are_counted_as_they_are_read(bundled):
    encoder = ReferenceEncoder(bundled, device="cpu")
    tokens = encoder.tokenize(["short", "long " * 400, "short"])
    assert tokens.token_counts.tolist() == [3, 256, 3]
    assert tokens.truncated.tolist() == [False, True, False]


def test_several_threads_get_their_own_vectors(tiny_sentence_model):
    encoder = ReferenceEncoder(find_sentence_model(str(tiny_sentence_model)), device="cpu")
    questions = [[f"question {number} of thread {thread}" for number in range(thread + 1)] for thread in range(4)]
    alone = [encoder.encode(encoder.tokenize(texts)) for texts in questions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda texts: encoder.encode(encoder.tokenize(texts)), questions))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_after_its_end_nothing_is_encoded(tiny_sentence_model):
    encoder = ReferenceEncoder(find_sentence_model(str(tiny_sentence_model)), device="cpu")
    tokens = encoder.tokenize(["text"])
    encoder.close()
    with pytest.raises(EncodingError, match="shut down"):
        encoder.encode(tokens)


def test_models_that_are_loaded_at_once_and_transformers_meanwhile_do_not_disturb_each_other(tiny_sentence_model):
    from transformers import AutoModel, PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    stop, loaded = threading.Event(), []

    def load_as_an_application_does():
        while not stop.is_set():
            loaded.append(AutoModel.from_pretrained(str(tiny_sentence_model)))

    with ThreadPoolExecutor(3) as pool:
        other = pool.submit(load_as_an_application_does)
        ours = [pool.submit(load_by_library, tiny_sentence_model, "tiny", device="cpu") for _ in range(4)]
        models = [model.result() for model in ours]
        stop.set()
        other.result()
    assert {type(model).__name__ for model in models} == {"SentenceTransformer"}
    assert {type(model).__name__ for model in loaded} == {"BertModel"}
    assert PreTrainedModel.__dict__["from_pretrained"] is original


def test_what_is_no_model_is_said_in_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="empty: sentence-transformers cannot load"):
        load_by_library(tmp_path, "empty", device="cpu")
