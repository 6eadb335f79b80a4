"""The demo's questions about Python, and the rules that find the segments which answer them.

The rules were written by reading the documentation, not from the output of any retriever. A rule names a source of the
corpus and a pattern in the words of the passage, so that it holds wherever a Python version cuts its segments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any

from bge_pipeline.quality.judgements import JudgedQueries


@dataclass(frozen=True)
class Rule:
    """Segments of a source that answer a question.

    Attributes:
        source: a video id of the corpus; `*` stands for any characters.
        pattern: regular expression that the text must contain, case-sensitive.
        grade: 2 if the segment answers the question, 1 if it helps.
    """

    source: str
    pattern: re.Pattern[str]
    grade: int


@dataclass(frozen=True)
class Question:
    """A question as a person types it, and what answers it."""

    id: str
    query: str
    rules: tuple[Rule, ...]


@lru_cache(maxsize=1)
def load_questions() -> tuple[Question, ...]:
    """All questions, in the order of the file, with ids `q001`, `q002` and so on."""
    text = files("bge_pipeline.demo").joinpath("questions.jsonl").read_text(encoding="utf-8")
    entries: list[Mapping[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return tuple(
        Question(
            id=f"q{number:03d}",
            query=entry["query"],
            rules=tuple(Rule(r["source"], re.compile(r["pattern"]), r["grade"]) for r in entry["relevant"]),
        )
        for number, entry in enumerate(entries, start=1)
    )


def judge(passages: Iterable[tuple[object, str, str]]) -> JudgedQueries:
    """Apply the rules to (id, video id, text) rows; one pass, constant memory beyond the result.

    Questions that nothing answers, because the slice is small or the Python version old, are dropped and counted.
    Recombined segments of a grown corpus are not judged: they answer half a question at best.
    """
    questions = load_questions()
    qrels: dict[str, dict[str, int]] = {question.id: {} for question in questions}
    rules_by_source: dict[str, list[tuple[str, Rule]]] = {}
    for passage_id, source, text in passages:
        if source not in rules_by_source:
            rules_by_source[source] = _rules_for(source, questions)
        for question_id, rule in rules_by_source[source]:
            if rule.pattern.search(text):
                grades = qrels[question_id]
                grades[str(passage_id)] = max(rule.grade, grades.get(str(passage_id), 0))
    answered = {question.id: question.query for question in questions if qrels[question.id]}
    return JudgedQueries(
        queries=answered,
        qrels={question_id: qrels[question_id] for question_id in answered},
        dropped=len(questions) - len(answered),
    )


def _rules_for(source: str, questions: Iterable[Question]) -> list[tuple[str, Rule]]:
    if "#" in source:
        return []
    return [(q.id, rule) for q in questions for rule in q.rules if fnmatchcase(source, rule.source)]
