"""Results as text for people, or as one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_pipeline.cli.env_line import env_line
from bge_pipeline.cli.wording import worded
from bge_pipeline.console import make_console
from bge_pipeline.duration import duration
from bge_pipeline.settings.column_list import join_columns

if TYPE_CHECKING:
    from bge_pipeline.phases.discover import Discovered
    from bge_pipeline.phases.embed import EmbedResult
    from bge_pipeline.phases.migrate import MigrateResult
    from bge_pipeline.phases.pause import PauseResult
    from bge_pipeline.phases.quarantined import Quarantined
    from bge_pipeline.phases.retire import RetireResult
    from bge_pipeline.phases.status import IndexStatus, Status
    from bge_pipeline.report.benchmark import BenchmarkReport
    from bge_pipeline.report.comparison import ModelComparison
    from bge_pipeline.report.diagnosis import Diagnosis
    from bge_pipeline.report.pages import WrittenReport

stdout = make_console(on_stderr=False)


class HasMetadata(Protocol):
    """A result that can be told as plain values."""

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        ...


def print_json(result: HasMetadata | Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    values = _finite(result if isinstance(result, Mapping) else result.as_metadata())
    stdout.file.write(json.dumps(values, indent=2, default=str, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON has no words for: null."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_facts(title: str, facts: Mapping[str, str | None], *, console: Console = stdout) -> None:
    """Two columns of names and values; None leaves a line out."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, Text(worded(value)))
    console.print(table)


def print_discovered(found: Sequence[Discovered], *, console: Console = stdout) -> None:
    """Vector columns, numbered, each with its facts below it: side by side they would have no room."""
    for number, one in enumerate(found, start=1):
        print_facts(
            f"{number}  {one.name}",
            {
                "key": join_columns(one.id_columns) or None,
                "type": one.found.type,
                "rows": f"about {one.found.rows:,}" if one.found.rows is not None else "not known",
                "index": one.found.index or "none",
                "framework": one.framework,
                "model": one.model or "not recorded",
            },
            console=console,
        )
    if not found:
        console.print("no column of pgvector's types")


def print_settings(settings: Mapping[str, str]) -> None:
    """Variables as they stand in `.env`."""
    for name, value in settings.items():
        stdout.print(env_line(name, value), markup=False, highlight=False, soft_wrap=True)


def print_status(status: Status) -> None:
    """Where the migration stands, and what to run next."""
    print_facts(
        f"{status.table}: {status.phase}",
        {
            "rows": f"{status.rows:,} ({megabytes(status.bytes)})",
            "embedded": f"{status.embedded:,} in {status.column!r}",
            "pending": f"{status.pending:,}",
            "search misses": _search_misses(status),
            "quarantined": f"{status.quarantined:,}" if status.quarantined else None,
            "without text": f"{status.without_text:,}" if status.without_text else None,
            "search reads": f"{status.dimensions or 'no fixed'} dimensions, {status.model or 'model not recorded'}",
            "being filled": f"{status.new_dimensions} dimensions, {status.new_model}" if status.new_model else None,
            "run by": status.run_by,
            "kept": f"{status.previous_column!r}, for the way back" if status.previous_column else None,
            "at work": "\n".join(map(str, status.workers)) or None,
            "done in": duration(status.eta_seconds) if status.eta_seconds is not None else None,
            "paused": str(status.paused).removeprefix("paused ") if status.paused else None,
            "rolled back": f"{status.rolled_back}, and nobody has gone forward since" if status.rolled_back else None,
            "a rollback": f"would leave {status.without_previous:,} rows without a vector"
            if status.without_previous
            else None,
            "written since": str(status.application_vectors) if status.application_vectors else None,
            "search uses": _index(status.searched_index),
            "index to come": _index(status.index) if status.column != status.searched_column else None,
            "warnings": "\n".join(status.warnings) or None,
            "next": status.next_step,
        },
    )
    for row in status.quarantine:
        stdout.print(Text(f"  quarantined {row.row_id}: {row.error}"))
    for row in status.companion_quarantine:
        stdout.print(Text(f"  quarantined for the old model {row.row_id}: {row.error}"))


def _index(index: IndexStatus | None) -> str:
    return f"{index.name} ({index.method}, {'valid' if index.valid else 'INVALID'})" if index else "no vector index"


def _search_misses(status: Status) -> str | None:
    """Rows that search does not find while another column is being filled; afterwards the pending rows are these."""
    if status.column == status.searched_column or not status.not_searchable:
        return None
    who = "which the application fills"
    if status.searched_pending is not None:
        who = f"{status.searched_pending:,} of them pending: bge-pipeline embed"
    return f"{status.not_searchable:,} rows without a vector in {status.searched_column!r}, {who}"


def print_migration(result: MigrateResult, status: Status) -> None:
    """What each phase did, and where the table stands now."""
    filled, swapped = result.backfill, result.swap
    if swapped is not None:
        built = f"built in {duration(swapped.index_seconds)}" if swapped.index_built else "was there"
        not_now = "none: the part has a column of its own" if swapped.notices else "had been done before"
        exchanged = f"held its lock for {swapped.lock_milliseconds:.0f} ms" if swapped.exchanged else not_now
    print_facts(
        "migration",
        {
            "expand": f"column {result.expand.column!r} {'added' if result.expand.added else 'was there'}",
            "backfill": f"{filled.rows:,} rows in {duration(filled.seconds)}, {filled.texts_per_second:,.0f} texts/s",
            "held back": held_back(filled.held_seconds),
            "truncated": f"{filled.truncated:,} texts were longer than the model reads" if filled.truncated else None,
            "index": f"{swapped.index_name} {built}" if swapped else None,
            "swap": exchanged if swapped else "not yet: the backfill has come as far as --until asks",
            "NOTE": ("; ".join(swapped.notices) or None) if swapped else None,
        },
    )
    print_status(status)


def print_embedding(result: EmbedResult) -> None:
    """What was embedded, and what is left."""
    done = result.backfill
    print_facts(
        f"{result.table}: {result.column!r} by {result.model}",
        {
            "embedded": f"{done.rows:,} rows in {duration(done.seconds)}"
            if done
            else (f"nothing: {result.paused}" if result.paused else "nothing was pending"),
            "held back": held_back(done.held_seconds) if done else None,
            "next": "bge-pipeline resume" if result.paused else None,
            "quarantined": f"{done.quarantined:,}" if done and done.quarantined else None,
            "still pending": f"{done.pending_after:,}" if done and done.pending_after else None,
        },
    )


def print_pause(result: PauseResult) -> None:
    """Whether runs on the table may write now, and who said so."""
    before = None if result.changed else ("paused" if result.paused else "not paused")
    print_facts(
        result.table,
        {
            "state": str(result.latest) if result.latest else "not paused",
            "changed": f"nothing: it was {before} before" if before else None,
            "next": "bge-pipeline resume; until then every run waits after the batch in hand"
            if result.paused
            else None,
        },
    )


def print_quarantined(found: Quarantined) -> None:
    """Rows that could not be embedded, by reason and the latest singly."""
    reasons = "\n".join(f"{rows:,}: {error}" for error, rows in found.reasons.items())
    print_facts(f"{found.table}: quarantine", {"rows": f"{found.rows:,}", "reasons": reasons or None})
    for row in found.latest:
        stdout.print(f"{row.row_id}  {row.quarantined_at}  {row.error}", markup=False, highlight=False)
    if found.rows:
        stdout.print(
            "Next: bge-pipeline quarantine retry, or correct the texts, which are then tried by themselves",
            markup=False,
        )


def held_back(seconds: Mapping[str, float]) -> str | None:
    """Seconds that a backfill was held back, by reason."""
    return ", ".join(f"{reason} {duration(time)}" for reason, time in seconds.items()) or None


_GRADE_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


def print_diagnosis(found: Diagnosis) -> None:
    """Each finding with its grade, and what mends it."""
    sampled = ", on random pages; --all reads every row" if found.content.is_sample else ""
    model = found.model or "a model that nobody recorded"
    stdout.print(Text(f"{found.table}: {found.column} {found.column_type}, by {model}", style="bold"))
    stdout.print(Text(f"{found.content.rows:,} rows looked at{sampled}"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for finding in found.findings:
        told = finding.told + (f"\nNext: {finding.next_step}" if finding.next_step else "")
        table.add_row(Text(finding.grade, style=_GRADE_STYLES[finding.grade]), finding.name, Text(worded(told)))
    stdout.print(table)


def print_comparison(found: ModelComparison) -> None:
    """The leaderboard, best quality first."""
    head, *rows = found.rows()
    table = Table(
        title=f"{found.table}: {found.queries:,} queries over {found.texts:,} texts", title_justify="left", box=None
    )
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    stdout.print(table)
    for note in found.notes():
        stdout.print(Text(note))
    for name, why in found.failed.items():
        stdout.print(Text(f"{name}: not measured: {why}"))


def print_retirement(result: RetireResult) -> None:
    """What retire dropped and how large the table is now."""
    print_facts(
        result.table,
        {
            "dropped": repr(result.dropped_column) if result.dropped_column else "nothing: the old column was gone",
            "size": f"{megabytes(result.table_bytes_before)} -> {megabytes(result.table_bytes_after)}",
            "space": None
            if result.rewritten
            else "comes back as rows are rewritten; --reclaim does it at once, under a lock",
            "NOTE": "; ".join(result.notices) or None,
        },
    )


def print_report(report: BenchmarkReport, written: WrittenReport) -> None:
    """The report's main figures and where the pages are."""
    figures = report.as_metadata()
    print_facts(
        f"{report.table}: {report.model} on {report.device}", {name: _figure(value) for name, value in figures.items()}
    )
    stdout.print(Text(f"report: {written.html}"))


def _figure(value: float | int | str) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def megabytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
