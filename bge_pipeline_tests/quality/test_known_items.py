"""Words out of a text find it, from wherever in it they are; a model that is set up wrongly finds less by them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.quality.known_items import KnownItemSearch, excerpts, known_item_search, scattered_words

ROWS = 300
TEXTS = [segment.text for segment in segments(ROWS)]


def random_vectors(rows: int, dimensions: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((rows, dimensions)).astype(np.float32)


def hashed(texts: list[str]) -> NDArray[np.float32]:
    encoder = HashingEncoder(1_536)
    return encoder.encode(encoder.tokenize(texts))


def test_excerpts_are_runs_of_words_from_inside_the_texts_and_the_same_every_time() -> None:
    found = excerpts(TEXTS, words=8)

    assert all(excerpt in " ".join(text.split()) for excerpt, text in zip(found, TEXTS, strict=True))
    assert {len(excerpt.split()) for excerpt in found} == {8}
    assert found == excerpts(TEXTS, words=8)
    assert excerpts(["too short"], words=8) == ["too short"]


def test_known_items_are_ranked_by_how_many_rows_are_nearer() -> None:
    rows = np.eye(4, dtype=np.float32)
    queries = np.array([[1, 0, 0, 0], [3, 2, 1, 0]], np.float32)
    result = known_item_search(queries, rows, answers=[0, 2], k=2)

    assert (result.success_at_1, result.success_at_k) == (0.5, 0.5)
    assert result.mrr == pytest.approx((1 + 1 / 3) / 2)


def test_a_duplicate_of_the_known_item_does_not_count_against_it() -> None:
    rows = np.array([[0, 1], [1, 0], [1, 0]], np.float32)

    assert known_item_search(rows[2:], rows, answers=[2]).success_at_1 == 1


def test_known_item_search_needs_an_answer_for_every_query() -> None:
    with pytest.raises(ValueError, match="one answer for each"):
        known_item_search(random_vectors(2, 4), random_vectors(9, 4), answers=[1])


def test_words_find_their_rows_and_lose_them_when_rows_are_shuffled() -> None:
    rows = hashed(TEXTS)
    queries = hashed(scattered_words(TEXTS))
    shuffled = np.random.default_rng(0).permutation(rows)

    assert known_item_search(queries, rows, range(ROWS)).success_at_k > 0.9
    assert known_item_search(queries, shuffled, range(ROWS)).success_at_k < 0.2


def test_scattered_words_come_from_all_over_the_text_and_are_the_same_every_time() -> None:
    text = " ".join(str(number) for number in range(60))
    (found,) = scattered_words([text])
    places = [int(word) for word in found.split()]

    assert len(places) == 20
    assert places == sorted(places)
    assert places[0] < 15
    assert places[-1] > 45
    assert scattered_words([text]) == [found]


def test_short_texts_are_taken_whole_and_long_ones_by_40_words() -> None:
    short, long = scattered_words(["only four words here", " ".join(["word"] * 1_000)])

    assert short == "only four words here"
    assert len(long.split()) == 40


def test_few_queries_are_given_their_interval() -> None:
    def highest(queries: int) -> float:
        return KnownItemSearch(queries, 1_000, 20, success_at_1=0.4, success_at_k=0.5, mrr=0.45).highest_success

    assert 0.5 < highest(1_000) < highest(200) < highest(10) < 1
    assert highest(200) == pytest.approx(0.569, abs=0.001)  # Wilson's interval of 100 in 200
