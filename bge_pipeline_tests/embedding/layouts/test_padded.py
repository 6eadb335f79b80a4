import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline_tests.embedding.conftest import ragged, some_examples

lengths_of_texts = st.lists(st.integers(0, 512), max_size=200).map(lambda lengths: np.array(lengths, np.int32))
budgets = st.integers(1, 5_000)
ceilings = st.integers(1, 64)


@pytest.mark.parametrize("few_shapes", [False, True])
@some_examples
@given(lengths_of_texts, budgets, ceilings)
def test_a_row_holds_its_text(few_shapes, lengths, budget, ceiling):
    for batch in Padded(0, few_shapes=few_shapes).plan(lengths, token_budget=budget, max_texts=ceiling):
        assert batch.shape[0] == len(batch.rows)
        assert batch.shape[1] >= lengths[batch.rows].max()


@some_examples
@given(lengths_of_texts, budgets, ceilings)
def test_the_longest_texts_go_first(lengths, budget, ceiling):
    batches = Padded(0).plan(lengths, token_budget=budget, max_texts=ceiling)
    in_order = [int(lengths[row]) for batch in batches for row in batch.rows]
    assert in_order == sorted(in_order, reverse=True)


@some_examples
@given(lengths_of_texts)
def test_few_shapes_are_eight_for_each_doubling_and_cost_an_eighth_at_most(lengths):
    batches = Padded(0, few_shapes=True).plan(lengths, token_budget=1, max_texts=1)
    row_lengths = {batch.shape[1] for batch in batches}
    for batch in batches:
        assert batch.shape[1] <= max(1, lengths[batch.rows[0]]) * 9 / 8 + 1e-9
    assert len({length for length in row_lengths if 256 < length <= 512}) <= 8


@some_examples
@given(lengths_of_texts, st.integers(1, 64))
def test_padding_keeps_every_token_and_masks_the_rest(lengths, ceiling):
    tokens, layout = ragged(lengths), Padded(-7)
    for batch in layout.plan(lengths, token_budget=2_000, max_texts=ceiling):
        arrays = layout.arrays(tokens, batch)
        for row, ids, mask in zip(batch.rows, arrays["input_ids"], arrays["attention_mask"], strict=True):
            text = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
            assert ids[: len(text)].tolist() == text.tolist()
            assert set(ids[len(text) :].tolist()) <= {-7}
            assert mask.tolist() == [1] * len(text) + [0] * (len(mask) - len(text))


def test_types_of_pairs_are_padded_with_zero():
    tokens = RaggedTokens(np.arange(5, dtype=np.int32), np.array([0, 3, 5]), np.array([0, 1, 1, 0, 1], np.int32))
    layout = Padded(9)
    (batch,) = layout.plan(tokens.lengths, token_budget=100, max_texts=2)
    assert layout.arrays(tokens, batch)["token_type_ids"].tolist() == [[0, 1, 1], [0, 1, 0]]
