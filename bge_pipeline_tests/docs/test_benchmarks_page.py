"""docs/benchmarks.md is what the results say, and the results are what programs wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.document import DOCUMENT, document
from benchmarks.harness import RESULTS

ROOT = Path(__file__).parents[2]


def test_the_page_is_in_step_with_the_results() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m benchmarks.document"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_note_of_a_result_is_in_the_program_that_wrote_it(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert "note" not in result, "added by hand"
    (module,) = re.findall(r"python -m ([\w.]+)", result["command"])
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    programs = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    programs = re.sub(r'"\s*\n\s*f?"', "", programs)  # strings that stand on several lines
    for note in result.get("notes", []):
        beginning = re.split(r"\d", note)[0]
        _, _, behind_a_name = beginning.partition(": ")
        assert beginning in programs or (behind_a_name and behind_a_name.rstrip(".") in programs)


def test_what_falls_short_has_its_figures_from_the_runs() -> None:
    """Figures by hand are those that nobody corrects: what was asked for may be named, nothing that was measured."""
    written = re.sub(r"\{\w+\}", "", (RESULTS / "limits.md").read_text(encoding="utf-8"))
    assert re.findall(r"\d+(?:\.\d+)?(?:%| times)", written) == ["70%"]


def test_the_page_of_large_tables_is_reckoned_from_the_results() -> None:
    assert scaling.DOCUMENT.read_text(encoding="utf-8") == scaling.document(), "run: python -m benchmarks.scaling"
