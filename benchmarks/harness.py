"""What the benchmarks share: the machine in words, tables on the terminal, and one JSON file a run for docs/benchmarks.md."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bge_pipeline.phases.benchmark import hardware

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Results:
    """A table of figures with its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Measurement:
    """One run of one benchmark.

    Attributes:
        name: of the benchmark, and of its file.
        about: what was measured, in a sentence or two.
        tables: the figures.
        notes: what a reader must know to judge them.
    """

    name: str
    about: str
    tables: list[Results]
    notes: list[str] = field(default_factory=list)

    def publish(self) -> Path:
        """Print the tables and write the JSON."""
        console = Console(width=max(140, Console().width))
        for table in self.tables:
            shown = Table(title=table.title, title_justify="left")
            for number, column in enumerate(table.columns):
                shown.add_column(column, justify="right" if number else "left")
            for row in table.rows:
                shown.add_row(*row)
            console.print(shown)
        for note in self.notes:
            console.print(note)
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        module = Path(sys.argv[0]).stem
        facts = {
            "command": " ".join([f"python -m benchmarks.{module}", *map(_without_folders, sys.argv[1:])]),
            "hardware": hardware(),
            "python": platform.python_version(),
            "measured_at": datetime.now(timezone.utc).date().isoformat(),
        }
        path.write_text(json.dumps(asdict(self) | facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def result_row(name: str, first: str, table: int = 0) -> dict[str, str]:
    """The row of a table of a result that begins so, by its columns."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["tables"][table]
    (row,) = (row for row in found["rows"] if row[0] == first)
    return dict(zip(found["columns"], row, strict=True))


def number(cell: str) -> float:
    """What a cell of a result says."""
    return float(cell.replace(",", ""))


def _without_folders(word: str) -> str:
    """An argument as it may stand in the results, which say nothing of the folders of a machine."""
    return "PATH" if Path(word).expanduser().is_absolute() else word
