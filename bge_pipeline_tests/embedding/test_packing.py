import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.packing import pack, plan_packed_batches, pool
from bge_pipeline_tests.embedding.conftest import ragged

lengths_of_texts = st.lists(st.integers(1, 512), max_size=200).map(lambda lengths: np.array(lengths, np.int32))
budgets = st.integers(1, 5_000)
ceilings = st.integers(1, 64)


@given(lengths_of_texts, budgets, ceilings)
def test_every_text_stands_in_exactly_one_place(lengths, budget, ceiling):
    batches = plan_packed_batches(lengths, token_budget=budget, max_texts=ceiling)
    assert sorted(int(row) for batch in batches for row in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        row_length = batch.shape[1]
        ends = batch.starts + lengths[batch.rows]
        assert (batch.starts[1:] >= ends[:-1]).all()
        assert (batch.starts // row_length == (ends - 1) // row_length).all()
        assert ends[-1] <= batch.shape[0] * row_length


@given(lengths_of_texts, budgets, ceilings)
def test_no_batch_exceeds_the_budget_unless_one_row_does(lengths, budget, ceiling):
    for batch in plan_packed_batches(lengths, token_budget=budget, max_texts=ceiling):
        assert len(batch.rows) <= ceiling
        assert batch.shape[0] * batch.shape[1] <= budget or batch.shape[0] == 1


@given(lengths_of_texts)
def test_longest_rows_go_first_and_have_few_lengths(lengths):
    row_lengths = [batch.shape[1] for batch in plan_packed_batches(lengths, token_budget=1_024, max_texts=256)]
    assert row_lengths == sorted(row_lengths, reverse=True)
    assert all(length % 16 == 0 for length in row_lengths)
    assert len({length for length in row_lengths if 256 < length <= 512}) <= 8


def test_short_texts_fill_the_rows_of_long_ones():
    lengths = np.random.default_rng(0).lognormal(np.log(35), 1, 4_096).clip(3, 512).astype(np.int32)
    batches = plan_packed_batches(lengths, token_budget=1_024, max_texts=256)
    assert lengths.sum() > 0.97 * sum(rows * length for rows, length in (batch.shape for batch in batches))


def test_texts_of_about_the_same_length_share_rows_too():
    lengths = np.random.default_rng(0).normal(55, 15, 1_000).clip(20, 110).astype(np.int32)
    batches = plan_packed_batches(lengths, token_budget=1_024, max_texts=256)
    assert lengths.sum() > 0.95 * sum(rows * length for rows, length in (batch.shape for batch in batches))


@given(lengths_of_texts.filter(len), st.integers(1, 2_000), ceilings)
def test_packing_keeps_every_token_and_tells_texts_apart(lengths, budget, ceiling):
    tokens = ragged(lengths)
    for batch in plan_packed_batches(lengths, token_budget=budget, max_texts=ceiling):
        arrays = {name: array.reshape(-1) for name, array in pack(tokens, batch, pad_id=-7).items()}
        is_text = np.zeros(batch.shape, bool).reshape(-1)
        for number, (row, start) in enumerate(zip(batch.rows, batch.starts, strict=True), start=1):
            place = slice(start, start + lengths[row])
            is_text[place] = True
            assert (arrays["input_ids"][place] == tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]).all()
            assert (arrays["position_ids"][place] == np.arange(lengths[row])).all()
            assert (arrays["segments"][place] == number).all()
        assert (arrays["input_ids"][~is_text] == -7).all()
        assert not arrays["segments"][~is_text].any()


POOLED = {
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
    "mean": lambda states: states.mean(axis=0),
    "max": lambda states: states.max(axis=0),
}


@pytest.mark.parametrize("pooling", POOLED)
@given(lengths=lengths_of_texts.filter(len), budget=budgets)
def test_each_text_is_pooled_from_its_own_tokens(pooling, lengths, budget):
    for batch in plan_packed_batches(lengths, token_budget=budget, max_texts=64):
        states = np.random.default_rng(0).standard_normal((*batch.shape, 3)).astype(np.float32)
        vectors = pool(states, batch, pooling)
        for vector, row, start in zip(vectors, batch.rows, batch.starts, strict=True):
            expected = POOLED[pooling](states.reshape(-1, 3)[start : start + lengths[row]])
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
