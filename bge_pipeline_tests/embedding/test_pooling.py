import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.layouts.packed_rows import PackedRows
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.pooling import POOLINGS, pool
from bge_pipeline_tests.embedding.conftest import TEXTS, some_examples

EXPECTED = {
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
    "mean": lambda states: states.mean(axis=0),
    "max": lambda states: states.max(axis=0),
}
KINDS = {"NumPy": lambda array: array, "PyTorch": lambda array: torch.from_numpy(np.array(array))}
LAYOUTS = {"padded": Padded(0), "packed rows": PackedRows(0), "end to end": EndToEnd()}
lengths_of_texts = st.lists(st.integers(1, 300), min_size=1, max_size=60).map(lambda found: np.array(found, np.int32))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
@some_examples
@given(lengths=lengths_of_texts, budget=st.integers(1, 3_000))
def test_each_text_is_pooled_from_its_own_tokens(pooling, layout, kind, lengths, budget):
    for batch in layout.plan(lengths, token_budget=budget, max_texts=64):
        tokens = batch.shape[0] * batch.shape[1]
        states = np.random.default_rng(0).standard_normal((tokens, 3)).astype(np.float32)
        vectors = np.asarray(pool(kind(states), kind(batch.starts), kind(batch.lengths), pooling))
        assert vectors.dtype == np.float32
        for vector, start, length in zip(vectors, batch.starts, batch.lengths, strict=True):
            expected = EXPECTED[pooling](states[start : start + length])
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_in_half_precision_are_pooled_in_full(pooling, dtype):
    states = torch.full((60_000, 4), 3.0, dtype=dtype)
    vectors = pool(states, torch.tensor([0, 10]), torch.tensor([10, 59_990]), pooling)
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors, 0.5, atol=1e-6)


def test_a_vector_of_zeros_stays_one():
    assert not pool(np.zeros((2, 3), np.float32), np.array([0]), np.array([2]), "mean").any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_the_one_that_sentence_transformers_gives_that_name(pooling, tiny_sentence_model):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(tiny_sentence_model), max_seq_length=256)
    theirs = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode=pooling), Normalize()], device="cpu")
    states = theirs.encode(TEXTS, output_value="token_embeddings")
    lengths = np.array([len(state) for state in states])
    together = np.concatenate([np.asarray(state, np.float32) for state in states])
    vectors = pool(together, np.cumsum(lengths) - lengths, lengths, pooling)
    np.testing.assert_allclose(vectors, theirs.encode(TEXTS), atol=1e-5)
