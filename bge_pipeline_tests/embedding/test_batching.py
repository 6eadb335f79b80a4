import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.batching import Batch, halves, pad, plan_batches
from bge_pipeline.embedding.tokenizer import RaggedTokens
from bge_pipeline_tests.embedding.conftest import ragged

lengths_of_texts = st.lists(st.integers(0, 512), max_size=200).map(lambda lengths: np.array(lengths, np.int32))
budgets = st.integers(1, 5_000)
ceilings = st.integers(1, 64)


@given(lengths_of_texts, budgets, ceilings, st.booleans())
def test_every_text_is_in_exactly_one_batch(lengths, budget, ceiling, few_shapes):
    batches = plan_batches(lengths, token_budget=budget, max_texts=ceiling, few_shapes=few_shapes)
    rows = [int(row) for batch in batches for row in batch.rows]
    assert sorted(rows) == list(range(len(lengths)))


@given(lengths_of_texts, budgets, ceilings, st.booleans())
def test_no_batch_exceeds_the_budget_unless_one_text_does(lengths, budget, ceiling, few_shapes):
    for batch in plan_batches(lengths, token_budget=budget, max_texts=ceiling, few_shapes=few_shapes):
        assert len(batch.rows) <= ceiling
        assert len(batch.rows) * batch.length <= budget or len(batch.rows) == 1
        assert batch.length >= lengths[batch.rows].max()


@given(lengths_of_texts, budgets, ceilings)
def test_the_longest_texts_go_first(lengths, budget, ceiling):
    batches = plan_batches(lengths, token_budget=budget, max_texts=ceiling)
    in_order = [int(lengths[row]) for batch in batches for row in batch.rows]
    assert in_order == sorted(in_order, reverse=True)


@given(lengths_of_texts)
def test_few_shapes_are_eight_for_each_doubling_and_cost_an_eighth_at_most(lengths):
    batches = plan_batches(lengths, token_budget=1, max_texts=1, few_shapes=True)
    for batch in batches:
        assert batch.length <= max(1, lengths[batch.rows[0]]) * 9 / 8 + 1e-9
    assert len({batch.length for batch in batches if 256 < batch.length <= 512}) <= 8


@given(lengths_of_texts, st.integers(1, 64))
def test_padding_keeps_every_token_and_masks_the_rest(lengths, ceiling):
    tokens = ragged(lengths)
    for batch in plan_batches(lengths, token_budget=2_000, max_texts=ceiling):
        arrays = pad(tokens, batch, pad_id=-7)
        for row, ids, mask in zip(batch.rows, arrays["input_ids"], arrays["attention_mask"], strict=True):
            text = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
            assert ids[: len(text)].tolist() == text.tolist()
            assert set(ids[len(text) :].tolist()) <= {-7}
            assert mask.sum() == len(text)


def test_types_of_pairs_are_padded_with_zero():
    tokens = RaggedTokens(np.arange(5, dtype=np.int32), np.array([0, 3, 5]), np.array([0, 1, 1, 0, 1], np.int32))
    arrays = pad(tokens, Batch(np.array([0, 1]), 4), pad_id=9)
    assert arrays["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]


def test_halves_share_the_rows_between_them():
    first, second = halves(Batch(np.arange(5), 8))
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 1], [2, 3, 4])
