"""Queries with judged passages: what an EVAL_QUERIES file holds, and how it is read."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bge_pipeline.database.ids import id_as_text
from bge_pipeline.errors import ConfigurationError

_FORMAT = '{"query": "...", "relevant": {"<id>": grade, ...}} or {"query": "...", "relevant": ["<id>", ...]}'


@dataclass(frozen=True)
class JudgedQueries:
    """Queries and which passages answer them.

    Attributes:
        queries: text of each query by query id.
        qrels: grade (1 and up, higher is better) by passage id, by query id. A passage's id is that of its row, as text.
        dropped: how many queries were left out because nothing relevant is there.
    """

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def passages(self) -> list[str]:
        """Ids of all that is judged, each once, in order."""
        return sorted({passage for grades in self.qrels.values() for passage in grades})

    def among(self, passages: Collection[str]) -> JudgedQueries:
        """What these passages answer: queries that none of them does are dropped."""
        qrels = {i: {p: grade for p, grade in grades.items() if p in passages} for i, grades in self.qrels.items()}
        kept = {i: query for i, query in self.queries.items() if qrels[i]}
        return JudgedQueries(kept, {i: qrels[i] for i in kept}, self.dropped + len(self) - len(kept))

    def first(self, count: int) -> JudgedQueries:
        """The first so many of the queries."""
        chosen = dict(islice(self.queries.items(), count))
        return JudgedQueries(chosen, {i: self.qrels[i] for i in chosen}, self.dropped)

    def sampled(self, most: int) -> JudgedQueries:
        """At most so many of the queries, the same ones every time, in their order."""
        if len(self) <= most:
            return self
        chosen = set(random.Random(0).sample(sorted(self.queries), most))  # noqa: S311
        return JudgedQueries(
            {i: query for i, query in self.queries.items() if i in chosen},
            {i: grades for i, grades in self.qrels.items() if i in chosen},
            self.dropped,
        )


def load_judged_queries(path: Path) -> JudgedQueries:
    """Read an EVAL_QUERIES file: JSON Lines, one query per line, empty lines ignored.

    A query's id is its line number, so that a report can be traced to the file.

    Raises:
        ConfigurationError: the file cannot be read or is empty, or a line has another form; names every such line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` knows ends of lines that JSON does not
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"EVAL_QUERIES: expected a readable JSON Lines file, got {path}: {error}") from error
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    for number, line in _non_empty(lines):
        try:
            queries[str(number)], qrels[str(number)] = _parse(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if not problems and not queries:
        problems.append("the file has no queries")
    if problems:
        raise ConfigurationError(
            f"EVAL_QUERIES: {path} cannot be used:\n" + "\n".join(problems),
            next_step=f"write one JSON object per line: {_FORMAT}",
        )
    return JudgedQueries(queries, qrels)


def write_judged_queries(path: Path, judged: JudgedQueries) -> None:
    """Write an EVAL_QUERIES file that `load_judged_queries` reads back."""
    lines = (
        json.dumps({"query": query, "relevant": judged.qrels[query_id]}, ensure_ascii=False)
        for query_id, query in judged.queries.items()
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _non_empty(lines: list[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _parse(line: str) -> tuple[str, dict[str, int]]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error.msg} at column {error.colno}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {type(entry).__name__}")
    query = entry.get("query")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"expected a text in 'query', got {query!r}")
    return query, _grades(entry.get("relevant"))


def _grades(relevant: Any) -> dict[str, int]:
    if isinstance(relevant, list):
        relevant = dict.fromkeys(map(_identifier, relevant), 1)
    if not isinstance(relevant, dict) or not relevant:
        raise ValueError(f"expected ids in 'relevant', as an object of grades or as a list, got {relevant!r}")
    for identifier, grade in relevant.items():
        if isinstance(grade, bool) or not isinstance(grade, int) or grade < 1:
            raise ValueError(f"expected a whole grade of 1 or more for id {identifier!r}, got {grade!r}")
    return relevant


def _identifier(value: Any) -> str:
    if isinstance(value, list) and value:  # of a key of several columns
        return id_as_text(tuple(map(_identifier, value)))
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected ids in 'relevant' to be texts, whole numbers or lists of them, got {value!r}")
    return str(value)
