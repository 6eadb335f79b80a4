"""What the journal says of the latest migration: its acts with their times, and the rates of its backfill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from bge_pipeline.database.journal import JournalEntry
from bge_pipeline.report.benchmark import PhaseTime
from bge_pipeline.report.wall_clock import wall_seconds

_INDEXED = ("swap", "index")
"""Acts that build the new column's index; of a part of the table it is `index`, as nothing is exchanged there."""


@dataclass(frozen=True)
class MigrationTimes:
    """The latest migration; None is what was not recorded, or has not come yet. For the rest see `BenchmarkReport`.

    Attributes:
        table_bytes_before: table with indexes when expand began.
    """

    phases: tuple[PhaseTime, ...]
    table_bytes_before: int | None
    backfill_seconds: float | None
    backfill_texts_per_second: float | None
    write_rows_per_second: float | None
    index_seconds: float | None
    lock_milliseconds: float | None


def migration_times(journal: Sequence[JournalEntry]) -> MigrationTimes:
    """The latest migration of a table's journal, which has the oldest entry first.

    What is embedded after the first swap, a few new rows at a time, is no part of the backfill's rates.
    """
    entries = _latest_migration(journal)
    expand = next((entry.facts for entry in entries if entry.act == "expand"), None)
    before_index = takewhile(lambda entry: entry.act not in _INDEXED, entries)
    backfills = [entry for entry in before_index if entry.act == "backfill" and entry.facts["rows"]]
    rows = sum(int(entry.facts["rows"]) for entry in backfills)
    wall = wall_seconds((entry.at, _at_work(entry)) for entry in backfills)
    writing = sum(float(entry.facts["write_seconds"]) for entry in backfills)
    built = (entry.facts for entry in reversed(entries) if entry.act in _INDEXED and entry.facts.get("index_built"))
    index = next(built, None)
    swap = next((entry.facts for entry in reversed(entries) if entry.act == "swap"), None)
    return MigrationTimes(
        phases=tuple(map(_phase_time, entries)),
        table_bytes_before=int(expand["table_bytes_before"]) if expand else None,
        backfill_seconds=wall or None,
        backfill_texts_per_second=rows / wall if wall else None,
        write_rows_per_second=rows / writing if writing else None,
        index_seconds=float(index["index_seconds"]) if index else None,
        lock_milliseconds=float(swap["lock_milliseconds"]) if swap else None,
    )


def _at_work(backfill: JournalEntry) -> float:
    """Seconds of a run but for those in which somebody had it paused."""
    paused = float(backfill.facts.get("held_seconds", {}).get("paused", 0.0))
    return max(0.0, float(backfill.facts["seconds"]) - paused)


def _phase_time(entry: JournalEntry) -> PhaseTime:
    facts = entry.facts
    built = facts.get("index_seconds") if facts.get("index_built") else None
    seconds = facts.get("seconds", built)
    detail = {
        "expand": lambda: f"column {facts['column']}",
        "backfill": lambda: f"{facts['rows']:,} rows, ids {facts['id_range']}",
        "quality": lambda: str(facts["verdict"]),
        "index": lambda: _index_detail(entry),
        "swap": lambda: f"{_index_detail(entry)}; lock held for {facts['lock_milliseconds']:.0f} ms",
        "rollback": lambda: f"lock held for {facts['lock_milliseconds']:.0f} ms",
    }.get(entry.act, lambda: "")()
    return PhaseTime(entry.act, entry.at, float(seconds) if seconds is not None else None, detail)


def _index_detail(entry: JournalEntry) -> str:
    facts = entry.facts
    return f"index {facts['index_name']} {'built' if facts['index_built'] else 'was there, built by an earlier run'}"


def _latest_migration(journal: Sequence[JournalEntry]) -> list[JournalEntry]:
    """The entries from the first expand after the migration before it ended, if there was one."""
    expands = _numbers(journal, "expand")
    ends = _numbers(journal, "retire", "collapse")
    earlier = [number for number in ends if expands and number < expands[-1]]
    return list(journal[max(earlier, default=-1) + 1 :])


def _numbers(journal: Iterable[JournalEntry], *acts: str) -> list[int]:
    return [number for number, entry in enumerate(journal) if entry.act in acts]
