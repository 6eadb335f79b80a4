"""What a benchmark report says, as headlines and tables of text; how that looks on a page is in pages.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Literal

from bge_pipeline.quality.gate import GateResult
from bge_pipeline.quality.search_runs import SearchRun
from bge_pipeline.quality.side_by_side import Comparison, Hit, SideBySide
from bge_pipeline.report.benchmark import BenchmarkReport, PhaseTime
from bge_pipeline.report.wall_clock import moment, wall_seconds

NOTHING = "—"
_SHOWN_ONE_BY_ONE = 4
_SHOWN_OF_A_TEXT = 200
"""Characters."""


@dataclass(frozen=True)
class Headline:
    """One figure that a reader looks for first, with what it has to be compared with."""

    label: str
    figure: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence and a table; the first row of the table is its head."""

    title: str
    rows: Sequence[Sequence[str]]
    text: str = ""


def title(report: BenchmarkReport) -> str:
    """The table, as a person writes it."""
    return f"Benchmark of {report.table.replace(chr(34), '')}"


def circumstances(report: BenchmarkReport) -> dict[str, str]:
    """What was measured, on what, and when."""
    versions = " · ".join(f"{name} {version}" for name, version in report.versions.items())
    return {
        "model": f"{report.model}, {report.dimensions} dimensions",
        "table": f"{report.rows:,} rows, {report.phase}",
        "device": f"{report.device}, {report.precision}",
        "machine": report.hardware,
        "versions": versions,
        "measured": f"{report.created_at[:16].replace('T', ' ')} UTC",
    }


def headlines(report: BenchmarkReport) -> list[Headline]:
    """The figures of the summary; those that were not measured are left out."""
    found = []
    fastest = max(report.encode, key=lambda run: run.texts_per_second, default=None)
    if fastest is not None:
        note = f"in batches of {fastest.batch_size}"
        found.append(Headline("encoding", f"{fastest.texts_per_second:,.0f} texts/s", note))
    old, new = _dense(report, "old"), _dense(report, "new")
    if new is not None:
        found.append(Headline("search, median", f"{new.p50_milliseconds:,.1f} ms", "with its query's vector"))
    if new is not None and new.ndcg is not None:
        before = f"before {old.ndcg:.3f}" if old is not None and old.ndcg is not None else ""
        found.append(Headline("nDCG@20", f"{new.ndcg:.3f}", before))
    storage = report.storage
    before = f"before {_bytes(storage.old_vector_bytes)}" if storage.old_vector_bytes is not None else ""
    if storage.new_vector_bytes is not None:
        found.append(Headline("one vector", _bytes(storage.new_vector_bytes), before))
    if report.lock_milliseconds is not None:
        found.append(Headline("table locked", f"{report.lock_milliseconds:,.0f} ms", "by the swap"))
    if report.gate is not None and report.gate.checks:
        measured = [check for check in report.gate.checks if check.value is not None]
        passed = sum(check.passed for check in measured)
        verdict = "passed" if report.gate.passed else "not passed"
        found.append(Headline("quality gate", verdict, f"{passed} of {len(measured)} checks"))
    return found


def sections(report: BenchmarkReport) -> list[Section]:
    """The tables, in the order in which they are read."""
    parts = [_search(report), _quality(report), *side_by_side_sections(report.side_by_side)]
    parts += [_encode(report), _storage(report), _phases(report)]
    if report.notes:
        parts.append(Section("Not measured", [["what and why"], *([note] for note in report.notes)]))
    return [Section(part.title, _without_empty_columns(part.rows), part.text) for part in parts]


def side_by_side_sections(comparison: Comparison | None) -> list[Section]:
    """For each question the results of both columns, row by row; nothing where there is nothing to compare."""
    if comparison is None or not comparison.pairs:
        return []
    intro = f"Old: {comparison.old}. New: {comparison.new}. {comparison.summary()}."
    return [Section("Side by side", [], intro), *(_beside(pair) for pair in comparison.pairs)]


def _beside(pair: SideBySide) -> Section:
    rows = [["rank", "old", "went to", "new", "came from"]]
    for rank, (old, new) in enumerate(zip_longest(pair.old, pair.new), start=1):
        rows.append([str(rank), *_hit(old, rank, "gone"), *_hit(new, rank, "new")])
    return Section(f"“{_clipped(pair.query)}”", rows, pair.summary())


def _hit(hit: Hit | None, rank: int, alone: str) -> tuple[str, str]:
    if hit is None:
        return "", ""
    moved = alone if hit.other_rank is None else "same" if hit.other_rank == rank else str(hit.other_rank)
    return f"[{hit.row_id}] {_clipped(hit.text)}", moved


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_OF_A_TEXT else f"{line[: _SHOWN_OF_A_TEXT - 1]}…"


def gate_rows(gate: GateResult) -> list[list[str]]:
    """The checks of the quality gate as a table."""
    rows = [["check", "measured", "at least", "passed", "what was seen"]]
    rows += [
        [
            check.name.replace("_", " "),
            _figure(check.value),
            _figure(check.bound),
            NOTHING if check.value is None else "yes" if check.passed else "NO",
            check.explanation,
        ]
        for check in gate.checks
    ]
    return rows


def _encode(report: BenchmarkReport) -> Section:
    if not report.encode:
        return Section("Encoding", [], "The table has no text.")
    rows = [["batch size", "texts/s", "tokens/s", "device memory"]]
    rows += [
        [
            str(run.batch_size),
            f"{run.texts_per_second:,.0f}",
            f"{run.tokens_per_second:,.0f}",
            NOTHING if run.device_memory_bytes is None else _megabytes(run.device_memory_bytes),
        ]
        for run in report.encode
    ]
    text = f"{report.encode[0].texts:,} texts of the table at each batch size."
    if report.rerank is not None:
        text += (
            f" Reranking with {report.rerank.model}: {report.rerank.queries} queries of {report.rerank.documents} documents, "
            f"{report.rerank.milliseconds_per_query:,.0f} ms a query, {report.rerank.pairs_per_second:,.0f} pairs/s."
        )
    return Section("Encoding", rows, text)


def _search(report: BenchmarkReport) -> Section:
    if not report.search:
        return Section("Search", [], "Not measured.")
    rows = [["search", "queries", "median ms", "95th percentile ms", "query encoded", "index", "recall@20", "nDCG@20"]]
    rows += [
        [
            run.name,
            str(run.queries),
            f"{run.p50_milliseconds:,.1f}",
            f"{run.p95_milliseconds:,.1f}",
            "within the time" if run.encodes else "beforehand",
            run.index or "none: every row is compared",
            _figure(run.recall),
            _figure(run.ndcg),
        ]
        for run in report.search
    ]
    text = "From the query to its results, the query's vector included where the column's own model could make it."
    old, new = _dense(report, "old"), _dense(report, "new")
    if old is not None and new is not None and not old.is_like(new):
        text += f" The milliseconds of old and new are no comparison: {unlike(old, new)}."
    if any(run.recall is not None for run in report.search):
        text += " Recall is against exact search on the same column."
    return Section("Search", rows, text)


def unlike(old: SearchRun, new: SearchRun) -> str:
    """Why the milliseconds of two runs are of two kinds."""
    reasons = []
    if (old.index is None) != (new.index is None):
        reasons.append(f"the {'old' if old.index is None else 'new'} column has no index now")
    if old.encodes != new.encodes:
        reasons.append("the query's vector was made within the time of one and before that of the other")
    return ", and ".join(reasons)


def _quality(report: BenchmarkReport) -> Section:
    if report.gate is None or not report.gate.checks:
        return Section("Quality gate", [], report.gate_summary)
    return Section("Quality gate", gate_rows(report.gate), report.gate_summary.splitlines()[0])


def _storage(report: BenchmarkReport) -> Section:
    storage = report.storage
    rows = [
        ["what", "before", "now"],
        [
            "one vector",
            _bytes(storage.old_vector_bytes),
            NOTHING if storage.new_vector_bytes is None else _bytes(storage.new_vector_bytes),
        ],
        ["table with indexes", _megabytes(storage.table_bytes_before), _megabytes(storage.table_bytes_now)],
        ["new vector index", NOTHING, _megabytes(storage.index_bytes)],
    ]
    has_both = storage.old_vector_bytes is not None and storage.new_vector_bytes is not None
    return Section("Storage", rows, "Now with the vectors of both columns." if has_both else "")


def _phases(report: BenchmarkReport) -> Section:
    rows = [["act", "ended, UTC", "seconds", "what"]]
    for act, group in groupby(report.phases, lambda phase: phase.act):
        rows += _phase_rows(act, list(group))
    text = "From the journal beside the table, whichever road ran them."
    runs = sum(phase.act == "backfill" for phase in report.phases)
    if runs > 1 and report.backfill_seconds is not None:
        wall = f"{report.backfill_seconds:,.1f} s on the wall"
        text += f" The backfill's {runs:,} runs took {wall}, where they overlap counted once."
    return Section("Phases", rows, text)


def _phase_rows(act: str, phases: list[PhaseTime]) -> list[list[str]]:
    """A line for each; of a table with hundreds of id ranges, one line for all of them."""
    if len(phases) > _SHOWN_ONE_BY_ONE:
        wall = wall_seconds((phase.at, phase.seconds or 0.0) for phase in phases)
        phases = [PhaseTime(act, phases[-1].at, wall, f"{len(phases):,} runs, on the wall")]
    return [
        [
            act,
            f"{moment(phase.at):%Y-%m-%d %H:%M:%S}",
            NOTHING if phase.seconds is None else f"{phase.seconds:,.1f}",
            phase.detail,
        ]
        for phase in phases
    ]


def _without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The table without columns in which nothing was measured."""
    kept = [n for n in range(len(rows[0]) if rows else 0) if any(row[n] not in ("", NOTHING) for row in rows[1:])]
    return [[row[n] for n in kept] for row in rows] if kept else []


def _dense(report: BenchmarkReport, column: Literal["old", "new"]) -> SearchRun | None:
    return next((run for run in report.search if run.words == (column, "dense")), None)


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _bytes(value: int | None) -> str:
    return "not recorded" if value is None else f"{value:,} bytes"


def _megabytes(value: int | None) -> str:
    return "not recorded" if value is None else f"{value / 1e6:,.1f} MB"
