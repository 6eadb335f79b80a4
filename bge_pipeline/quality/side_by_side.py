"""Side by side: what a question finds with the old and with the new vectors, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bge_pipeline.database.connection import Database
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.sampling import SampledRows, sample_vectors, vectors_of
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.stored_vectors import StoredVectors
from bge_pipeline.quality.time_limit import deadline_in, in_time
from bge_pipeline.search import Retriever
from bge_pipeline.settings import Settings
from bge_pipeline.space import EmbeddingSpace

RESULTS = 10


@dataclass(frozen=True)
class Hit:
    """One row that was found.

    Attributes:
        row_id: its id, as text.
        text: its text.
        other_rank: its rank with the other vectors, from 1; None where it is not among their results.
    """

    row_id: str
    text: str
    other_rank: int | None


@dataclass(frozen=True)
class SideBySide:
    """The results of one question with both.

    Attributes:
        query: the question; for a row as query, its text.
        row_id: of the row whose stored vectors stood for the question; None where both encoders made their own.
        old, new: best first.
    """

    query: str
    row_id: str | None
    old: tuple[Hit, ...]
    new: tuple[Hit, ...]

    @property
    def shared(self) -> int:
        """Rows that both found."""
        return sum(hit.other_rank is not None for hit in self.new)

    def summary(self) -> str:
        """What became of the old results, in a line."""
        moved = sum(hit.other_rank not in (None, rank) for rank, hit in enumerate(self.new, start=1))
        came, went = len(self.new) - self.shared, len(self.old) - self.shared
        return f"{self.shared} of {len(self.old)} stayed ({moved} moved), {came} came, {went} went"

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"summary": self.summary()}


@dataclass(frozen=True)
class Comparison:
    """Several questions side by side.

    Attributes:
        table: schema-qualified.
        old, new: the columns with their models.
        source: where the questions come from, and how the columns were asked.
        pairs: one a question.
    """

    table: str
    old: str
    new: str
    source: str
    pairs: tuple[SideBySide, ...]

    def summary(self) -> str:
        """How much stayed, over all questions."""
        before, stayed = sum(len(pair.old) for pair in self.pairs), sum(pair.shared for pair in self.pairs)
        questions = f"{len(self.pairs)} question{'' if len(self.pairs) == 1 else 's'}"
        return f"{stayed} of {before} results stayed over {questions} ({self.source})"

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"summary": self.summary(), "pairs": [pair.as_metadata() for pair in self.pairs]}


def compare_questions(
    database: Database,
    settings: Settings,
    service: EmbeddingsService,
    columns: ComparedColumns,
    old_encoder: QueryEncoder | None,
    questions: Sequence[str],
    *,
    results: int = RESULTS,
    seconds: float | None = None,
) -> list[SideBySide]:
    """Ask both columns each question.

    With the old encoder at hand, each column is asked with its own encoder's vector. Otherwise both are asked with the stored
    vectors of the row that the new model finds first, and that row is left out of both.

    Args:
        database: where the table is.
        settings: those of search.
        service: the new model.
        columns: both of them; `columns.old` is there.
        old_encoder: the old column's model, None where it is not at hand.
        questions: what to ask.
        results: of each column, at most.
        seconds: after so many, and one question, no more is asked; None: all are.
    """
    assert columns.old is not None
    plain = settings.model_copy(update={"query_expansion": "off"})
    new = Retriever(database, plain, service, column=columns.new.name)
    asked = in_time(questions, deadline_in(seconds))
    if old_encoder is None:
        firsts = (first for question in asked if (first := _first_row(database, plain, new, columns, question)))
        return _compare_rows(database, plain, columns, firsts, results)
    old = Retriever(database, plain, query_encoder=old_encoder, column=columns.old.name)
    return [_beside(question, None, _ask(old, question, results), _ask(new, question, results)) for question in asked]


def compare_rows(
    database: Database,
    settings: Settings,
    columns: ComparedColumns,
    rows: int,
    *,
    results: int = RESULTS,
    seconds: float | None = None,
) -> list[SideBySide]:
    """Ask both columns with the stored vectors of about `rows` rows, each left out of its own results; no model is asked.

    `results` and `seconds` are those of `compare_questions`.
    """
    assert columns.old is not None
    plain = settings.model_copy(update={"query_expansion": "off"})
    with database.autocommit() as connection:
        sample = sample_vectors(connection, TargetTable.from_settings(settings), columns.names, rows)
    positions = in_time(range(len(sample)), deadline_in(seconds))
    firsts = (_row_of(sample, position, sample.texts[position]) for position in positions)
    return _compare_rows(database, plain, columns, firsts, results)


@dataclass(frozen=True)
class _AskingRow:
    question: str
    row: SampledRows


def _row_of(rows: SampledRows, position: int, question: str) -> _AskingRow:
    one = slice(position, position + 1)
    vectors = {column: found[one] for column, found in rows.vectors.items()}
    return _AskingRow(question, SampledRows(rows.ids[one], rows.texts[one], vectors))


def _first_row(
    database: Database, settings: Settings, new: Retriever, columns: ComparedColumns, question: str
) -> _AskingRow | None:
    """The row nearest to the question by the new model that has both vectors."""
    ids = [found.id for found in new.search(question, rerank="never", top_k=RESULTS).results]
    with database.autocommit() as connection:
        rows = vectors_of(connection, TargetTable.from_settings(settings), columns.names, ids)
    order = {id_as_text(row_id): rank for rank, row_id in enumerate(ids)}
    nearest = min(range(len(rows)), key=lambda position: order[id_as_text(rows.ids[position])], default=None)
    return _row_of(rows, nearest, question) if nearest is not None else None


def _compare_rows(
    database: Database, settings: Settings, columns: ComparedColumns, asking: Iterable[_AskingRow], results: int
) -> list[SideBySide]:
    assert columns.old is not None
    found = []
    for row in asking:
        (text,), (row_id,) = row.row.texts, map(id_as_text, row.row.ids)
        old, new = (
            _ask(_by_stored(database, settings, row.row, name, space), text, results + 1)
            for name, space in ((columns.old.name, columns.old_space), (columns.new.name, _space(columns)))
        )
        without = [[hit for hit in hits if hit[0] != row_id][:results] for hits in (old, new)]
        found.append(_beside(row.question, row_id, *without))
    return found


def _space(columns: ComparedColumns) -> EmbeddingSpace | None:
    return columns.new.note.space if columns.new.note is not None else None


def _by_stored(
    database: Database, settings: Settings, rows: SampledRows, column: str, space: EmbeddingSpace | None
) -> Retriever:
    return Retriever(database, settings, query_encoder=StoredVectors(rows, column, space), column=column)


def _ask(retriever: Retriever, question: str, results: int) -> list[tuple[str, str]]:
    found = retriever.search(question, rerank="never", top_k=results).results
    return [(id_as_text(result.id), result.text) for result in found]


def _beside(
    query: str, row_id: str | None, old: Sequence[tuple[str, str]], new: Sequence[tuple[str, str]]
) -> SideBySide:
    old_ranks, new_ranks = ({hit[0]: rank for rank, hit in enumerate(hits, start=1)} for hits in (old, new))
    return SideBySide(
        query,
        row_id,
        tuple(Hit(found, text, new_ranks.get(found)) for found, text in old),
        tuple(Hit(found, text, old_ranks.get(found)) for found, text in new),
    )
