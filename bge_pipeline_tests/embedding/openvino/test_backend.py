from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bge_pipeline.errors import ConfigurationError, EncodingError
from bge_pipeline_tests.embedding.conftest import TEXTS
from bge_pipeline_tests.embedding.openvino.conftest import vectors_of

pytest.importorskip("openvino")

LEAST_COSINE = {"fp32": 0.999999, "auto": 0.999, "int8": 0.97}


@pytest.mark.parametrize(
    "precision", ["auto", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("fp32", "int8"))]
)
def test_vectors_agree_with_sentence_transformers(load, reference, precision):
    if precision == "int8":
        pytest.importorskip("nncf")
    encoder = load(embedding_precision=precision)
    vectors = vectors_of(encoder, TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = (vectors * reference).sum(axis=1)
    assert cosines[[bool(text) for text in TEXTS]].min() > LEAST_COSINE[precision]
    if precision == "fp32":
        np.testing.assert_allclose(vectors, reference, atol=1e-5)
    if precision == "int8":
        assert encoder.space.precision == "int8"
        assert encoder.backend.quantization.is_enough


@pytest.mark.thorough
def test_the_order_of_the_texts_is_kept(load):
    encoder = load(embedding_precision="fp32")
    texts = [f"{'word ' * (number * 37 % 100)} number {number}" for number in range(80)]
    together = vectors_of(encoder, texts)
    for number in (0, 17, 79):
        np.testing.assert_allclose(together[number], vectors_of(encoder, [texts[number]])[0], atol=1e-4)


def test_calls_from_several_threads_do_not_disturb_each_other(load):
    encoder = load(embedding_precision="fp32")
    batches = [[f"thread {thread}, text {number} " * (number % 9 + 1) for number in range(12)] for thread in range(4)]
    alone = [vectors_of(encoder, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: vectors_of(encoder, batch), batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_closed_encoder_says_so(load):
    encoder = load(embedding_precision="fp32")
    encoder.close()
    with pytest.raises(EncodingError, match="shut down"):
        vectors_of(encoder, ["text"])


def test_a_precision_that_the_processor_lacks_is_refused(load, monkeypatch):
    monkeypatch.setattr("bge_pipeline.embedding.openvino.backend._capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(ConfigurationError, match="EMBEDDING_PRECISION=bf16: this processor has no instructions for it"):
        load(embedding_precision="bf16")
