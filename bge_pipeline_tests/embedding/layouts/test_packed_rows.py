import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.layouts.packed_rows import PackedRows
from bge_pipeline_tests.embedding.conftest import ragged, some_examples

lengths_of_texts = st.lists(st.integers(1, 512), max_size=200).map(lambda lengths: np.array(lengths, np.int32))
budgets = st.integers(1, 5_000)
ceilings = st.integers(1, 64)


@some_examples
@given(lengths_of_texts, budgets, ceilings)
def test_texts_stand_apart_and_none_goes_over_the_end_of_its_row(lengths, budget, ceiling):
    for batch in PackedRows(-7).plan(lengths, token_budget=budget, max_texts=ceiling):
        row_length = batch.shape[1]
        ends = batch.starts + lengths[batch.rows]
        assert (batch.starts[1:] >= ends[:-1]).all()
        assert (batch.starts // row_length == (ends - 1) // row_length).all()
        assert ends[-1] <= batch.shape[0] * row_length


@some_examples
@given(lengths_of_texts)
def test_longest_rows_go_first_and_have_few_lengths(lengths):
    row_lengths = [batch.shape[1] for batch in PackedRows(-7).plan(lengths, token_budget=1_024, max_texts=256)]
    assert row_lengths == sorted(row_lengths, reverse=True)
    assert all(length % 16 == 0 for length in row_lengths)
    assert len({length for length in row_lengths if 256 < length <= 512}) <= 8


def test_short_texts_fill_the_rows_of_long_ones():
    lengths = np.random.default_rng(0).lognormal(np.log(35), 1, 4_096).clip(3, 512).astype(np.int32)
    batches = PackedRows(-7).plan(lengths, token_budget=1_024, max_texts=256)
    assert lengths.sum() > 0.97 * sum(rows * length for rows, length in (batch.shape for batch in batches))


def test_texts_of_about_the_same_length_share_rows_too():
    lengths = np.random.default_rng(0).normal(55, 15, 1_000).clip(20, 110).astype(np.int32)
    batches = PackedRows(-7).plan(lengths, token_budget=1_024, max_texts=256)
    assert lengths.sum() > 0.95 * sum(rows * length for rows, length in (batch.shape for batch in batches))


@some_examples
@given(lengths_of_texts.filter(len), st.integers(1, 2_000), ceilings)
def test_packing_keeps_every_token_and_tells_texts_apart(lengths, budget, ceiling):
    tokens = ragged(lengths)
    for batch in PackedRows(-7).plan(lengths, token_budget=budget, max_texts=ceiling):
        arrays = {name: array.reshape(-1) for name, array in PackedRows(-7).arrays(tokens, batch).items()}
        is_text = np.zeros(batch.shape, bool).reshape(-1)
        for number, (row, start) in enumerate(zip(batch.rows, batch.starts, strict=True), start=1):
            place = slice(start, start + lengths[row])
            is_text[place] = True
            assert (arrays["input_ids"][place] == tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]).all()
            assert (arrays["position_ids"][place] == np.arange(lengths[row])).all()
            assert (arrays["segments"][place] == number).all()
        assert (arrays["input_ids"][~is_text] == -7).all()
        assert not arrays["segments"][~is_text].any()
