"""Documentation markup becomes plain sentences, and sentences become segments."""

from __future__ import annotations

from bge_pipeline.demo.prose import MAX_WORDS, MIN_WORDS, Passage, pack, passages, split_sentences

DOCUMENT = """
The "with" statement
********************

The :term:`context manager` is *entered* before the block and ``exited``
after it, as in a built-
in type.

   with_stmt ::= "with" suite

For example:

   with open(path) as lines:
       total = sum(map(int, lines))

object.__enter__(self)

   Called when the block is entered; the value is bound to the target.
   >>> manager.__enter__()
   'value'
"""


def test_prose_is_kept_and_code_grammar_and_headings_are_left_out() -> None:
    texts = [" ".join(passage.sentences) for passage in passages(DOCUMENT)]

    assert texts == [
        "The context manager is entered before the block and exited after it, as in a built-in type.",
        "object.__enter__: Called when the block is entered; the value is bound to the target.",
    ]


def test_a_label_opens_the_first_passage_only() -> None:
    first, second = passages("Return the sum of all items.\n\nAn empty list is the sum of nothing.", "total")

    assert first.sentences == ("total: Return the sum of all items.",)
    assert second.sentences == ("An empty list is the sum of nothing.",)


def test_abbreviations_do_not_end_a_sentence() -> None:
    assert split_sentences("Use a name, e.g. Ada. It is stored.") == ["Use a name, e.g. Ada.", "It is stored."]


def test_a_sentence_longer_than_a_segment_is_cut_into_parts_that_lose_no_word() -> None:
    sentence = " ".join(f"word{index}{',' if index % 30 == 29 else ''}" for index in range(200)) + "."
    parts = split_sentences(sentence)

    assert " ".join(parts) == sentence
    assert all(len(part.split()) <= MAX_WORDS for part in parts)


def test_segments_have_the_right_length_and_end_where_a_sentence_ends() -> None:
    speech = [Passage(tuple(f"Sentence {i} has exactly six words." for i in range(n))) for n in (1, 2, 9, 30, 1)]
    texts = list(pack(speech))

    assert all(MIN_WORDS <= len(text.split()) <= MAX_WORDS for text in texts)
    assert all(text.endswith(".") for text in texts)
    assert sum(len(text.split()) for text in texts) == 43 * 6


def test_too_little_prose_makes_no_segment() -> None:
    assert list(pack([Passage(("Too short to stand alone.",))])) == []
