"""The labelled corpora of the benchmarks, on a miniature of each format."""

import pytest

from benchmarks.corpora import (
    Corpus,
    definitions_corpus,
    halves_corpus,
    headwords_corpus,
    overlap_group,
    pack,
    sections_corpus,
    word_overlap,
)
from benchmarks.corpus_formats import Section, dictd_articles, fortunes, html_sections

ARTICLES = (
    b"blue wire\n n.\n\n    [IBM] Patch wires added to circuit boards at the factory to correct faults. The colour\n"
    b"    of it need not be blue, since the name says what it is for, {red wire} aside.\n\n    Compare {purple wire}.\n\n"
    b"foo\n\n    Short.\n\n"
)
INDEX = "00-database-info\tA\tB\nblue wire\tA\tDZ\nfoo\tDZ\tAR\nwire\tA\tDZ\n"
DOCBOOK = """<html><head><title>1. Not this</title></head><body><div class="navheader"><p>Next</p></div>
<div class="titlepage"><h2 class="title">11.4. Indexes and <code>ORDER BY</code></h2></div>
<div class="toc"><dl><dt>11.4.1. A part</dt></dl></div>
<p>An index may   deliver rows in order.</p><pre>CREATE INDEX</pre><ul><li><p>Ascending,</p></li><li>descending.</li></ul>
<h3>11.4.1. A part</h3><p>More of it.</p></body></html>"""


def test_articles_of_a_dictionary_come_once_and_without_marks() -> None:
    (headword, paragraphs), short = dictd_articles(INDEX, ARTICLES)
    assert headword == "blue wire"
    assert paragraphs[0].startswith("Patch wires added")
    assert paragraphs[0].endswith("red wire aside.")
    assert paragraphs[1] == "Compare purple wire."
    assert short == ("foo", ["Short."])


def test_a_definition_asks_without_its_headword_for_what_follows() -> None:
    corpus = definitions_corpus("glossary", dictd_articles(INDEX, ARTICLES))
    assert list(corpus.judged.queries.values()) == ["Patch added to circuit boards at the factory to correct faults."]
    (query_id,) = corpus.judged.queries
    (answer,) = corpus.judged.qrels[query_id]
    assert corpus.passages[answer].startswith("blue wire: The colour of it")
    assert corpus.overlap[query_id] == 0
    assert set(corpus.passages.values()) == {corpus.passages[answer], "foo: Short."}


def test_a_headword_asks_for_its_entry() -> None:
    corpus = headwords_corpus("glossary", dictd_articles(INDEX, ARTICLES))
    found = {query: [corpus.passages[i] for i in corpus.judged.qrels[q]] for q, query in corpus.judged.queries.items()}
    assert found["foo"] == ["foo: Short."]
    assert set(corpus.overlap.values()) == {1}


def test_a_page_is_read_as_sections_without_navigation_code_and_contents() -> None:
    assert list(html_sections(DOCBOOK)) == [
        Section("Indexes and ORDER BY", ("An index may deliver rows in order.", "Ascending,", "descending.")),
        Section("A part", ("More of it.",)),
    ]


def test_a_title_asks_for_its_passages_unless_it_is_repeated_or_has_few() -> None:
    long = ("A paragraph of words that are there in order to be more than fifteen, as these are now.",)
    pages = [
        [Section("Ordering", long), Section("Notes", long), Section("Short", ("Few words.",))],
        [Section("Notes", long)],
        [Section("ABORT", ("ABORT — abort the transaction",)), Section("Description", long)],
    ]
    corpus = sections_corpus("manual", pages)
    assert set(corpus.judged.queries.values()) == {"Ordering", "abort the transaction"}
    assert len(corpus.passages) == 5
    assert all("—" not in passage for passage in corpus.passages.values())


def test_the_halves_of_a_fortune_without_who_said_it() -> None:
    cookies = list(fortunes("one two\n%\n" + "word " * 30 + "\n\t\t-- Somebody\n%\n"))
    assert cookies == ["one two", ("word " * 30).strip()]
    corpus = halves_corpus("fortunes", cookies)
    assert list(corpus.passages.values()) == [" ".join(["word"] * 15)]
    assert corpus.judged.qrels == {"1": {"1": 1}}


def test_passages_are_whole_sentences() -> None:
    assert list(pack(["One two three. Four five.", "Six seven."], 5)) == ["One two three. Four five.", "Six seven."]
    assert list(pack(["One two three four five six."], 5)) == ["One two three four five six."]


def test_queries_have_nothing_that_a_search_takes_for_an_operator() -> None:
    corpus = halves_corpus("texts", ['"Hello," -- he said -loudly and well-known ' + "word " * 30])
    (query,) = corpus.judged.queries.values()
    assert query.startswith("Hello, he said loudly and well-known word")


@pytest.mark.parametrize(
    ("query", "passage", "share", "group"),
    [
        ("how do I sort the lists", "Sorting a list", 1.0, "many"),
        ("sort by two keys", "a key", 1 / 3, "some"),
        ("remove duplicates", "a set", 0.0, "few"),
        ("what is the", "what is the", 0.0, "few"),
    ],
)
def test_overlap_is_of_words_that_say_something(query: str, passage: str, share: float, group: str) -> None:
    assert word_overlap(query, passage) == pytest.approx(share)
    assert overlap_group(word_overlap(query, passage)) == group


def test_halves_part_the_queries_and_groups_do_too() -> None:
    corpus: Corpus = halves_corpus("texts", (f"text{n} " * 30 for n in range(100)))
    tuning, held_out = corpus.half("tuning"), corpus.half("held out")
    assert not set(tuning.queries) & set(held_out.queries)
    assert set(tuning.queries) | set(held_out.queries) == set(corpus.judged.queries)
    assert min(len(tuning), len(held_out)) > 30
    assert [len(corpus.group(group)) for group in ("few", "some", "many")] == [0, 0, 100]
