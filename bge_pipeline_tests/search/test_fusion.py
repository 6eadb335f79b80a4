"""The benchmark that chooses the constants of hybrid search: it must fuse as the statement does."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from benchmarks.fusion import Constants, Outcome, RankedLists, choose, try_all
from bge_pipeline.database.connection import Database
from bge_pipeline.search import Retriever, create_text_index, statements, words
from bge_pipeline.settings import Settings

SHIPPED = Constants(statements.DENSE_K, statements.WORDS_WEIGHT, words.BACKGROUND_RANK)


@pytest.mark.pgvector
def test_it_orders_as_a_hybrid_search_does(database: Database, settings: Settings, retriever: Retriever) -> None:
    create_text_index(database, settings)
    for query in ("remove an item from a list", "raise an exception when the file is missing"):
        dense = [result.id for result in retriever.search(query, top_k=200).results]
        lexical = retriever.search(query, mode="lexical", top_k=200).results
        hybrid = [result.id for result in retriever.search(query, mode="hybrid", top_k=20).results]
        assert hybrid != dense[:20]
        for rank, answer in enumerate(hybrid, start=1):
            lists = RankedLists(dense, [r.id for r in lexical], [r.score for r in lexical], {answer: 1})
            before = 1 / log2(dense.index(answer) + 2) if answer in dense[:20] else 0
            gain = try_all([lists], [SHIPPED]).gain.item()
            assert gain == pytest.approx(1 / log2(rank + 1) - before)


def test_constants_that_mislead_are_not_chosen_however_much_they_gain() -> None:
    bold, careful = Constants(10, 0.2, 50), Constants(3, 0.06, 200)
    misled = np.arange(100) < 50
    outcome = Outcome(np.stack([np.where(misled, -0.1, 0.5), np.where(misled, 0.0, 0.1)]), misled)
    assert choose([outcome], [bold, careful]) == careful
    assert choose([Outcome(outcome.gain, np.zeros(100, bool))], [bold, careful]) == bold
    assert choose([Outcome(outcome.gain[:1], misled)], [bold]) is None


def test_lists_that_find_no_answer_in_their_first_twenty_words_are_misled() -> None:
    ids = [f"{number}" for number in range(30)]
    early, late = ({"3": 1}, {"25": 1})
    lists = [RankedLists(ids, ids, [1.0] * 30, grades) for grades in (early, late)]
    assert try_all(lists, [SHIPPED]).misled.tolist() == [False, True]
