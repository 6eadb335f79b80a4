"""The demo corpus reads like speech, is the same every time, and grows without repeating itself."""

from __future__ import annotations

import re
from itertools import islice, pairwise

import pytest

from bge_pipeline.demo.corpus import corpus_rows, segments, sources


def test_the_corpus_has_thousands_of_segments_of_20_to_80_words() -> None:
    lengths = [len(segment.text.split()) for segment in segments()]

    assert len(lengths) == corpus_rows()
    assert 4_000 < len(lengths) < 10_000
    assert min(lengths) >= 20
    assert max(lengths) <= 80


def test_no_text_and_no_position_occurs_twice() -> None:
    corpus = list(segments())

    assert len({segment.text for segment in corpus}) == len(corpus)
    assert len({(segment.video_id, segment.start_sec, segment.end_sec) for segment in corpus}) == len(corpus)


def test_the_same_python_gives_the_same_corpus() -> None:
    assert list(islice(segments(10_000), 6_000)) == list(islice(segments(20_000), 6_000))


def test_texts_are_free_of_markup_and_interactive_sessions() -> None:
    noise = re.compile(r">>>|::=|={4,}|\*\*\w+\*\*|:\w+:`|\n|  ")

    assert [segment.text for segment in segments() if noise.search(segment.text)] == []


def test_speech_advances_through_a_video_without_overlap() -> None:
    for before, after in pairwise(segments()):
        assert before.start_sec < before.end_sec
        if before.video_id == after.video_id:
            assert before.end_sec <= after.start_sec


def test_language_reference_and_library_are_both_there() -> None:
    titles = {source.video_id: source.title for source in sources()}

    assert titles["topic:yield"] == 'The "yield" statement'
    assert titles["module:graphlib"].startswith("graphlib")
    assert "module:itertools" in titles


def test_fewer_rows_are_an_even_slice() -> None:
    some = list(segments(100))
    kinds = {segment.metadata["kind"] for segment in some}

    assert len(some) == 100
    assert len({segment.video_id for segment in some}) > 40
    assert kinds == {"topic", "module"}


@pytest.mark.parametrize("rows", [0, 1, 100, 30_000])
def test_sources_are_exactly_those_of_the_segments(rows: int) -> None:
    names = [source.video_id for source in sources(rows)]

    assert len(names) == len(set(names))
    assert set(names) == {segment.video_id for segment in segments(rows)}


def test_more_rows_begin_with_the_corpus_and_repeat_no_text_and_no_position() -> None:
    rows = 60_000
    texts, positions, lengths = set(), set(), []
    for segment in segments(rows):
        texts.add(segment.text)
        positions.add((segment.video_id, segment.start_sec, segment.end_sec))
        lengths.append(segment.metadata["words"])

    assert len(texts) == len(positions) == len(lengths) == rows
    assert max(lengths) <= 80
    assert [segment.text for segment in islice(segments(rows), corpus_rows())] == [s.text for s in segments()]


def test_impossible_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 0 rows"):
        segments(-1)
    with pytest.raises(ValueError, match="expected at most"):
        next(segments(10**12))
