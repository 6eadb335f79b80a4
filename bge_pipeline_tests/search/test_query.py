"""What a person typed, taken apart."""

import pytest

from bge_pipeline.search.query import parse_query


@pytest.mark.parametrize(
    ("typed", "words", "must"),
    [
        ("how do I sort a list", "how do I sort a list", ""),
        ('"exact phrase" near it', "exact phrase near it", '"exact phrase"'),
        ("sorting -bubble", "sorting", "-bubble"),
        ('sorting -"bubble sort" fast', "sorting fast", '-"bubble sort"'),
        ("well-known state-of-the-art", "well-known state-of-the-art", ""),
        ("5 - 3", "5 - 3", ""),
        ('an "unbalanced quote', 'an "unbalanced quote', ""),
        ("-only -negated", "", "-only -negated"),
    ],
)
def test_phrases_and_negations_are_told_from_words(typed: str, words: str, must: str) -> None:
    parsed = parse_query(typed)
    assert parsed.words.split() == words.split()
    assert parsed.must == must


@pytest.mark.parametrize("typed", ["", "   ", "\n\t", "\0", "-word"])
def test_a_query_without_words_is_blank(typed: str) -> None:
    assert parse_query(typed).is_blank


@pytest.mark.parametrize("typed", ["a\0b", "lone surrogate \ud800 here"])
def test_characters_that_postgresql_cannot_store_are_replaced(typed: str) -> None:
    words = parse_query(typed).words
    assert "\0" not in words
    words.encode()
