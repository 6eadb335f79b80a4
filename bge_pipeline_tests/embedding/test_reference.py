from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bge_pipeline.embedding.reference import Reference
from bge_pipeline_tests.embedding.conftest import TEXTS


def test_vectors_are_those_of_the_library_float32_and_of_unit_length(bundled, reference):
    vectors = Reference(str(bundled.files.folder), device="cpu").encode(TEXTS, batch_size=4)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, reference, atol=1e-6)


def test_several_threads_get_their_own_vectors(tiny_sentence_model):
    model = Reference(str(tiny_sentence_model), device="cpu")
    questions = [[f"question {number} of thread {thread}" for number in range(thread + 1)] for thread in range(4)]
    alone = [model.encode(texts, batch_size=8) for texts in questions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda texts: model.encode(texts, batch_size=8), questions))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
