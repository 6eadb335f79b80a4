"""EVAL_QUERIES files are read in both forms, and a mistake is reported with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.quality.judgements import JudgedQueries, load_judged_queries, write_judged_queries


def write(folder: Path, text: str) -> Path:
    path = folder / "queries.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_grades_and_plain_ids_are_both_understood(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"query": "wie geht das", "relevant": {"7": 2, "9": 1}}\n\n{"query": "b", "relevant": ["x-1", 12, ["acme", 17]]}\n',
    )
    judged = load_judged_queries(path)

    assert judged.queries == {"1": "wie geht das", "3": "b"}
    assert judged.qrels == {"1": {"7": 2, "9": 1}, "3": {"x-1": 1, "12": 1, '["acme", "17"]': 1}}
    assert len(judged) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: expected JSON"),
        ("[]", "line 2: expected an object, got list"),
        ('{"relevant": ["1"]}', "line 2: expected a text in 'query', got None"),
        ('{"query": " ", "relevant": ["1"]}', "line 2: expected a text in 'query'"),
        ('{"query": "a"}', "line 2: expected ids in 'relevant'"),
        ('{"query": "a", "relevant": []}', "line 2: expected ids in 'relevant'"),
        (
            '{"query": "a", "relevant": [1.5]}',
            "line 2: expected ids in 'relevant' to be texts, whole numbers or lists of them",
        ),
        ('{"query": "a", "relevant": {"1": "high"}}', "line 2: expected a whole grade of 1 or more for id '1'"),
        ('{"query": "a", "relevant": {"1": 0}}', "line 2: expected a whole grade of 1 or more"),
    ],
)
def test_a_mistake_names_its_line_and_what_was_expected(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, '{"query": "good", "relevant": ["1"]}\n' + line + "\n")

    with pytest.raises(ConfigurationError) as caught:
        load_judged_queries(path)

    assert problem in caught.value.message
    assert "EVAL_QUERIES" in caught.value.message
    assert caught.value.next_step is not None


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)line 1.*line 2"):
        load_judged_queries(write(tmp_path, "1\n2\n"))


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a readable JSON Lines file"):
        load_judged_queries(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigurationError, match="the file has no queries"):
        load_judged_queries(write(tmp_path, "\n"))


def test_a_line_ends_where_json_lines_end(tmp_path):
    """U+2028 and U+0085 may stand in a string as they are; Python takes them for ends of lines."""
    path = tmp_path / "queries.jsonl"
    judged = JudgedQueries({"1": "before\u2028after", "2": "next\u0085line"}, {"1": {"7": 1}, "2": {"8": 2}})
    write_judged_queries(path, judged)
    assert load_judged_queries(path) == judged
