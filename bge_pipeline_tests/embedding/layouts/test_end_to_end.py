import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline_tests.embedding.conftest import ragged, some_examples

lengths_of_texts = st.lists(st.integers(1, 512), min_size=1, max_size=200).map(lambda found: np.array(found, np.int32))


@some_examples
@given(lengths_of_texts, st.integers(1, 5_000), st.integers(1, 64))
def test_nothing_is_padded_and_every_boundary_is_named(lengths, budget, ceiling):
    layout, tokens = EndToEnd(), ragged(lengths)
    for batch in layout.plan(lengths, token_budget=budget, max_texts=ceiling):
        arrays = layout.arrays(tokens, batch)
        assert arrays["input_ids"].shape == arrays["position_ids"].shape == (1, lengths[batch.rows].sum())
        assert arrays["boundaries"].tolist() == [0, *np.cumsum(lengths[batch.rows])]
        assert arrays["longest"] == lengths[batch.rows].max()
        for start, length in zip(batch.starts, batch.lengths, strict=True):
            assert arrays["position_ids"][0, start : start + length].tolist() == list(range(length))


def test_the_budget_counts_texts_as_if_they_were_padded():
    lengths = np.array([100, 1, 1, 1], np.int32)
    first, second = EndToEnd().plan(lengths, token_budget=300, max_texts=64)
    assert (first.shape, second.shape) == ((1, 102), (1, 1))
