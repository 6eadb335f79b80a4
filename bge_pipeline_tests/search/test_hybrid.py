"""Words, and words fused with vectors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.search import Retriever, create_text_index
from bge_pipeline.search import statements as search_statements
from bge_pipeline.search import words as search_words
from bge_pipeline.search.results import SearchResult
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import execute, scalar

pytestmark = pytest.mark.pgvector

Statements = Callable[[], AbstractContextManager[list[str]]]
TEXTS = {
    1: "The quick brown fox jumps over the lazy dog.",
    2: "A brown dog and a quick cat.",
    3: "The fox is brown, and quick as well.",
    4: "Zebras are striped.",
    5: "Snowfall in the mountains; a dog sleeps.",
    6: "Mountains of dogs, dogs and more dogs: every dog has its day, says the dog.",
}


@pytest.fixture
def words(database: Database, settings: Settings, retriever: Retriever) -> Retriever:
    """A retriever over six short texts, with a text index."""
    execute(database, "DELETE FROM segments WHERE id > 6")
    for number, passage in TEXTS.items():
        execute(database, "UPDATE segments SET text = :text WHERE id = :id", text=passage, id=number)
    create_text_index(database, settings)
    return retriever


def found(retriever: Retriever, query: str, mode: str = "lexical", **options: object) -> list[int]:
    return [result.id for result in retriever.search(query, mode=mode, **options).results]


def test_any_word_makes_a_candidate_and_rare_words_count_most(words: Retriever) -> None:
    assert found(words, "are there any striped dogs?")[0] == 4
    assert set(found(words, "are there any striped dogs?")) == {1, 2, 4, 5, 6}


def test_more_words_beat_fewer(words: Retriever) -> None:
    assert set(found(words, "quick brown fox")[:2]) == {1, 3}


def test_a_phrase_must_occur(words: Retriever) -> None:
    assert found(words, '"brown fox"') == [1]
    assert found(words, '"brown fox" zebras') == [1]
    assert found(words, '"fox brown"') == []


def test_a_negated_word_or_phrase_must_not(words: Retriever) -> None:
    assert set(found(words, "dog -mountains")) == {1, 2}
    assert set(found(words, 'quick -"lazy dog"')) == {2, 3}
    assert found(words, "-dog") == []


def test_a_phrase_of_stop_words_alone_leaves_the_nearest_rows(words: Retriever) -> None:
    assert len(found(words, '"the" brown fox', "hybrid")) == 6
    assert len(found(words, '"to be or not to be"', "hybrid")) == 6


def test_operators_hold_for_the_nearest_rows_of_a_hybrid_search_too(words: Retriever) -> None:
    assert found(words, '"brown fox"', "hybrid") == [1]
    assert 1 not in found(words, 'quick -"lazy dog"', "hybrid")


def test_stop_words_alone_find_nothing_by_words_and_something_by_vectors(words: Retriever) -> None:
    assert found(words, "what is the") == []
    assert found(words, "what is the", "hybrid") == found(words, "what is the", "dense")


def test_lexical_results_carry_score_and_rank(words: Retriever) -> None:
    results = words.search("brown dog", mode="lexical").results
    assert [result.lexical_rank for result in results] == list(range(1, len(results) + 1))
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert scores == [result.lexical_score for result in results]
    assert all(result.dense_rank is None for result in results)


def test_filters_apply_to_words_and_vectors_alike(words: Retriever) -> None:
    for mode in ("dense", "lexical", "hybrid"):
        assert set(found(words, "quick brown dog", mode, where=words.table.c.id.in_([2, 3]))) == {2, 3}


def test_a_word_in_very_many_rows_is_left_out_unless_there_is_no_other(
    words: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_words, "COMMON_WORD_ROWS", 3)
    assert found(words, "dog zebras") == [4]
    assert len(found(words, "dog")) >= 3


def test_a_pasted_article_is_searched_for(words: Retriever) -> None:
    article = " ".join(f"word{number}" for number in range(3_000))
    for mode in ("dense", "lexical", "hybrid"):
        words.search(article, mode=mode)
    assert found(words, "striped " + article) == [4]


def test_index_and_scan_give_the_same_ranking(database: Database, settings: Settings, retriever: Retriever) -> None:
    queries = [
        "return the value of an object",
        "raise an exception when the file is missing",
        '"iterable" -set',
        'values "keyword arguments" -"positional arguments"',
    ]
    before = [[(r.id, r.score) for r in retriever.search(query, mode="lexical").results] for query in queries]
    built = create_text_index(database, settings)
    assert built.built
    after = [[(r.id, r.score) for r in retriever.search(query, mode="lexical").results] for query in queries]
    assert "text index" in retriever.search("value", mode="lexical").explanation
    assert [[i for i, _ in ranking] for ranking in before] == [[i for i, _ in ranking] for ranking in after]
    assert before == [[(i, pytest.approx(score)) for i, score in ranking] for ranking in after]
    assert not create_text_index(database, settings).built


def test_the_text_index_answers(database: Database, settings: Settings, retriever: Retriever) -> None:
    name = create_text_index(database, settings).name
    execute(database, "ANALYZE segments")
    plan = retriever.search("iterable objects", mode="lexical", explain=True).explanation
    assert f"Bitmap Index Scan on {name}" in plan


def fused(result: SearchResult, standing: float) -> float:
    by_rank = 1 / (search_statements.DENSE_K + result.dense_rank) if result.dense_rank else 0
    return by_rank + search_statements.WORDS_WEIGHT * standing


def test_hybrid_is_one_statement_and_fuses_ranks_with_what_stands_out_by_words(
    database: Database,
    settings: Settings,
    retriever: Retriever,
    statements: Statements,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create_text_index(database, settings)
    query = "remove an item from a list"
    dense = {r.id: r.dense_rank for r in retriever.search(query, top_k=200).results}
    words = retriever.search(query, mode="lexical", top_k=200).results
    lexical = {r.id: r.lexical_rank for r in words}
    monkeypatch.setattr(search_words, "BACKGROUND_RANK", len(words) - 1)
    best, background = words[0].score, words[-2].score
    with statements() as sent:
        response = retriever.search(query, mode="hybrid", top_k=50)
    assert len(sent) == 1
    assert any(result.lexical_rank for result in response.results)
    for result in response.results:
        standing = max(0.0, (result.lexical_score - background) / best) if result.lexical_score else 0.0
        assert result.score == pytest.approx(fused(result, standing))
        assert result.dense_rank == dense.get(result.id)
        assert result.lexical_rank == lexical.get(result.id)


def test_words_that_many_rows_share_move_nothing_and_a_rare_one_does(
    database: Database, settings: Settings, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_words, "BACKGROUND_RANK", 5)
    execute(database, "UPDATE segments SET text = 'an ordinary sentence'")
    execute(database, "UPDATE segments SET text = 'an ordinary aardvark' WHERE id = 7")
    create_text_index(database, settings)
    for result in retriever.search("ordinary", mode="hybrid", top_k=50).results:
        assert result.score == pytest.approx(fused(result, 0.0))
    first, second, *_ = retriever.search("ordinary aardvark", mode="lexical").results
    aardvark = next(r for r in retriever.search("ordinary aardvark", mode="hybrid", top_k=200).results if r.id == 7)
    assert first.id == 7
    assert aardvark.score == pytest.approx(fused(aardvark, 1 - second.score / first.score))


def test_fewer_words_than_the_background_stand_out_in_full(
    database: Database, settings: Settings, retriever: Retriever
) -> None:
    execute(database, "UPDATE segments SET text = 'an aardvark' WHERE id = 7")
    create_text_index(database, settings)
    found = next(r for r in retriever.search("aardvark", mode="hybrid", top_k=200).results if r.id == 7)
    assert found.score == pytest.approx(fused(found, 1.0))


def test_what_words_alone_find_displaces_none_of_the_thirteen_nearest() -> None:
    assert search_statements.WORDS_WEIGHT < 1 / (search_statements.DENSE_K + 13)


def test_a_row_that_waits_for_its_vector_is_found_by_its_words(database: Database, retriever: Retriever) -> None:
    execute(database, "UPDATE segments SET text = 'an aardvark', embedding = NULL WHERE id = 7")
    assert 7 in found(retriever, "aardvark", "hybrid")


def test_another_language_is_a_setting(database: Database, make_settings: Callable[..., Settings]) -> None:
    execute(database, "UPDATE segments SET text = 'Die Häuser am See' WHERE id = 1")
    german = make_settings(search_language="german")
    create_text_index(database, german)
    create_text_index(database, make_settings())
    assert scalar(database, "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%to_tsvector%'") == 2
    assert found(Retriever(database, german), "Haus") == [1]
    assert found(Retriever(database, make_settings()), "Haus") == []


def test_a_language_that_is_not_there_is_refused_as_a_setting(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(Exception, match="SEARCH_LANGUAGE"):
        make_settings(search_language="english'; DROP TABLE segments; --")
