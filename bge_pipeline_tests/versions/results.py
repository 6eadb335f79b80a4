"""What the runs found, in results.json, and which versions may be claimed after it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from bge_pipeline_tests.versions.suite import Outcome

RESULTS = Path(__file__).with_name("results.json")
Runs = dict[str, dict[str, Any]]


def read_results() -> dict[str, Runs]:
    """Runs by what they were of, `servers` or `pythons`, and by name."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"servers": {}, "pythons": {}}


def keep_result(kind: str, name: str, found: dict[str, str], outcome: Outcome) -> None:
    """Put a run in place of the last one of that name."""
    _write(kind, name, found | asdict(outcome) | {"at_the_second_try": 0})


def keep_second_try(kind: str, name: str, outcome: Outcome) -> None:
    """Correct the last run of that name by what came of the tests that had failed in it."""
    run = read_results()[kind][name]
    run["passed"] += outcome.passed
    run["at_the_second_try"] += outcome.passed
    run["failed"] = outcome.failed
    _write(kind, name, run)


def _write(kind: str, name: str, run: dict[str, Any]) -> None:
    with FileLock(Path(tempfile.gettempdir()) / "bge-pipeline-versions.lock"):  # several may run at once
        results = read_results()
        results[kind] = dict(sorted((results[kind] | {name: run}).items(), key=lambda item: _numbers(item[0])))
        RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def claimed(runs: Runs, component: str, numbers: int) -> list[str]:
    """Versions of a component with which every test passed, cut to so many numbers, in order: `15`, `0.5`, `3.12`."""
    found = {_numbers(run[component])[:numbers] for run in runs.values() if not run["failed"]}
    return [".".join(map(str, version)) for version in sorted(found)]


def span(versions: Iterable[str]) -> str:
    """The first to the last of versions: `15 to 18`; `none` of none."""
    found = list(versions)
    return " to ".join(dict.fromkeys([found[0], found[-1]])) if found else "none"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.replace("-", ".").split("."))
