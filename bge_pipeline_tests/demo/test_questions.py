"""The demo's questions are many, well formed, and answered by the corpus of this Python."""

from __future__ import annotations

from collections import Counter

from bge_pipeline.demo.corpus import segments
from bge_pipeline.demo.questions import judge, load_questions


def test_there_are_more_than_a_hundred_different_questions_with_unique_ids() -> None:
    questions = load_questions()

    assert len(questions) >= 120
    assert len({question.query for question in questions}) == len(questions)
    assert len({question.id for question in questions}) == len(questions)
    assert {rule.grade for question in questions for rule in question.rules} == {1, 2}


def test_every_question_could_be_answered_in_full() -> None:
    assert [q.id for q in load_questions() if all(rule.grade < 2 for rule in q.rules)] == []


def test_nearly_every_question_is_answered_by_this_pythons_corpus() -> None:
    corpus = list(segments())
    judged = judge((number, segment.video_id, segment.text) for number, segment in enumerate(corpus))
    answers = [len(grades) for grades in judged.qrels.values()]

    assert len(judged) >= 120
    assert judged.dropped <= 0.1 * len(load_questions())
    assert max(answers) <= 12
    assert 2 <= sum(answers) / len(answers) <= 5


def test_questions_ask_about_many_parts_of_the_corpus() -> None:
    corpus = {str(number): segment for number, segment in enumerate(segments())}
    judged = judge((key, segment.video_id, segment.text) for key, segment in corpus.items())
    sources = Counter(corpus[key].video_id for grades in judged.qrels.values() for key in grades)

    assert len(sources) >= 60
    assert max(sources.values()) <= 0.1 * sum(sources.values())


def test_the_best_grade_wins_when_two_rules_meet_in_a_passage() -> None:
    text = 'The "nonlocal" statement causes the listed identifiers to refer to previously bound variables.'
    judged = judge([(42, "topic:nonlocal", text)])

    assert judged.qrels == {"q002": {"42": 2}}
    assert judged.queries == {"q002": "how do I change a variable of the enclosing function from an inner function"}
    assert judged.dropped == len(load_questions()) - 1


def test_recombined_passages_are_not_judged() -> None:
    text = 'The "nonlocal" statement causes the listed identifiers … and something else.'

    assert len(judge([(1, "topic:nonlocal#2", text)])) == 0
