"""What all layouts promise: every text in one batch, and its tokens where the batch says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.layouts import halves
from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.layouts.packed_rows import PackedRows
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline_tests.embedding.conftest import ragged, some_examples

LAYOUTS = {
    "padded": Padded(-7),
    "padded, few shapes": Padded(-7, few_shapes=True),
    "packed rows": PackedRows(-7),
    "end to end": EndToEnd(),
}

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
lengths_of_texts = st.lists(st.integers(1, 512), max_size=200).map(lambda lengths: np.array(lengths, np.int32))
budgets = st.integers(1, 5_000)
ceilings = st.integers(1, 64)


@every_layout
@some_examples
@given(lengths_of_texts, budgets, ceilings)
def test_every_text_is_in_exactly_one_batch_of_few_enough(layout, lengths, budget, ceiling):
    batches = layout.plan(lengths, token_budget=budget, max_texts=ceiling)
    assert sorted(int(row) for batch in batches for row in batch.rows) == list(range(len(lengths)))
    assert all(len(batch.rows) <= ceiling for batch in batches)


@every_layout
@some_examples
@given(lengths_of_texts.filter(len), budgets, ceilings)
def test_a_batch_says_where_each_text_stands_among_its_tokens(layout, lengths, budget, ceiling):
    tokens = ragged(lengths)
    for batch in layout.plan(lengths, token_budget=budget, max_texts=ceiling):
        ids = layout.arrays(tokens, batch)["input_ids"]
        assert ids.shape == batch.shape
        assert batch.lengths.tolist() == lengths[batch.rows].tolist()
        for row, start, length in zip(batch.rows, batch.starts, batch.lengths, strict=True):
            here = ids.reshape(-1)[start : start + length]
            assert here.tolist() == tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()


@every_layout
@some_examples
@given(lengths_of_texts, budgets, ceilings)
def test_no_batch_exceeds_the_budget_unless_one_row_does(layout, lengths, budget, ceiling):
    for batch in layout.plan(lengths, token_budget=budget, max_texts=ceiling):
        rows, length = batch.shape
        assert rows * length <= budget or rows == 1


@every_layout
@some_examples
@given(lengths_of_texts.filter(lambda lengths: len(lengths) > 1))
def test_halves_share_the_texts_of_a_batch_between_them(layout, lengths):
    for batch in layout.plan(lengths, token_budget=1_024, max_texts=64):
        smaller = halves(layout, batch) if len(batch.rows) > 1 else [batch]
        assert sorted(int(row) for half in smaller for row in half.rows) == sorted(batch.rows.tolist())
        for half in smaller:
            assert half.lengths.tolist() == lengths[half.rows].tolist()
            assert len(half.rows) <= (len(batch.rows) + 1) // 2


@every_layout
def test_no_texts_need_no_batch(layout):
    assert layout.plan(np.array([], np.int32), token_budget=100, max_texts=10) == []
