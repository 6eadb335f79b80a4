"""What the runs found, in results.json, and which versions may be claimed after it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
Runs = dict[str, dict[str, Any]]


def read_results() -> dict[str, Runs]:
    """Runs by what they were of, `servers` or `pythons`, and by name."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"servers": {}, "pythons": {}}


def keep_result(kind: str, name: str, run: dict[str, Any]) -> None:
    """Put a run in place of the last one of that name."""
    results = read_results()
    results[kind] = dict(sorted((results[kind] | {name: run}).items(), key=lambda item: _numbers(item[0])))
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def claimed(runs: Runs, component: str, numbers: int) -> list[str]:
    """Versions of a component with which every test passed, cut to so many numbers, in order: `15`, `0.5`, `3.12`."""
    found = {_numbers(run[component])[:numbers] for run in runs.values() if not run["failed"]}
    return [".".join(map(str, version)) for version in sorted(found)]


def span(versions: Iterable[str]) -> str:
    """The first to the last of versions: `15 to 18`."""
    first, *_, last = [*versions] * 2
    return first if first == last else f"{first} to {last}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.replace("-", ".").split("."))
