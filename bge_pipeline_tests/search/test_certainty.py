"""When the cross-encoder is spared."""

import pytest

from bge_pipeline.search.certainty import Certainty
from bge_pipeline.search.results import SearchResult


def ranked(
    distances: list[float], lexical_rank_of_first: int | None = None, *, with_words: bool = False
) -> list[SearchResult]:
    found = [
        SearchResult(
            id=rank,
            text="",
            score=1 - distance,
            dense_rank=rank,
            distance=distance,
            lexical_rank=lexical_rank_of_first if rank == 1 else None,
        )
        for rank, distance in enumerate(distances, start=1)
    ]
    return [*found, SearchResult(99, "", 0.1, lexical_rank=1)] if with_words else found


CLOSE_TOGETHER = [0.50 + 0.005 * n for n in range(30)]
ONE_STANDS_OUT = [0.30] + [0.50 + 0.005 * n for n in range(29)]
STANDS_OUT_A_LITTLE = [0.38] + [0.50 + 0.005 * n for n in range(29)]


def test_a_nearest_row_that_stands_out_spares_the_reranker() -> None:
    assert not Certainty().decide(ranked(ONE_STANDS_OUT)).rerank
    assert Certainty().decide(ranked(CLOSE_TOGETHER)).rerank


@pytest.mark.parametrize(("lexical_rank", "reranks"), [(1, False), (10, False), (11, True), (None, True)])
def test_words_that_agree_make_up_for_a_smaller_margin(lexical_rank: int | None, reranks: bool) -> None:
    decision = Certainty().decide(ranked(STANDS_OUT_A_LITTLE, lexical_rank, with_words=True))
    assert decision.rerank is reranks
    assert decision.lists_agree is not reranks


def test_the_margin_does_not_depend_on_the_scale_of_distances() -> None:
    shrunk = [0.2 * distance for distance in ONE_STANDS_OUT]
    assert Certainty().decide(ranked(shrunk)).margin == pytest.approx(Certainty().decide(ranked(ONE_STANDS_OUT)).margin)


def test_only_the_first_ranks_count() -> None:
    far_tail = CLOSE_TOGETHER[:20] + [5.0] * 10
    assert Certainty().decide(ranked(far_tail)).rerank


def test_without_distances_it_is_unsure_and_without_candidates_there_is_nothing_to_do() -> None:
    assert (
        Certainty().decide([SearchResult(1, "", 2.0, lexical_rank=1), SearchResult(2, "", 1.0, lexical_rank=2)]).rerank
    )
    assert not Certainty().decide([]).rerank
    assert not Certainty().decide(ranked([0.4])).rerank


@pytest.mark.parametrize("distances", [[0.0, 0.0, 0.0], [-0.9, -0.8, -0.7]])
def test_distances_that_allow_no_margin_are_unsure(distances: list[float]) -> None:
    assert Certainty().decide(ranked(distances)).rerank


def test_the_reason_names_the_margin_and_the_words() -> None:
    reason = Certainty().decide(ranked(STANDS_OUT_A_LITTLE, 3, with_words=True)).reason
    assert reason == "the first stage is sure: margin 0.36, the words agree"
