"""docs/frameworks.md as programs: the fenced block behind `<!-- application: part, part -->` is those parts of it."""

from __future__ import annotations

import re

from bge_pipeline_tests.roads import ROOT

PAGE = ROOT / "docs/frameworks.md"
PARTS = {"settings", "create", "before", "after"}
_BLOCK = re.compile(r"<!-- (\w+): ([\w, ]+) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read_page() -> dict[str, dict[str, str]]:
    """The parts of each application, by name."""
    found: dict[str, dict[str, str]] = {}
    for name, parts, content in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for part in parts.split(", "):
            found.setdefault(name, {})[part] = content
    return found
