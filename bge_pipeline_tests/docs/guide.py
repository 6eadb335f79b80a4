"""The migration guide as programs: its fenced blocks, in the scenarios that the comments between them name.

`<!-- scenario: name, ends phase -->` puts the blocks that follow into a scenario; a name that comes again continues it.
`<!-- not run: reason -->` leaves the next block out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from bge_pipeline_tests.roads import ROOT

GUIDE = ROOT / "docs/migration-guide.md"
LANGUAGES = ("bash", "python", "sql")

_SCENARIO = re.compile(r"<!-- scenario: ([^,]+?)(?:, ends (\w+))? -->")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_HERE = "END_OF_BLOCK"


@dataclass(frozen=True)
class Block:
    """A fenced block; `not_run` says why it is left out."""

    line: int
    language: str
    content: str
    scenario: str | None
    not_run: str | None


@dataclass
class Scenario:
    """Blocks that are run one after the other, on one table, in one shell; `ends` is the phase they lead to."""

    name: str
    ends: str = ""
    blocks: list[Block] = field(default_factory=list)

    def script(self) -> str:
        """The scenario as a program for bash. SQL is handed to $RUN_SQL."""
        parts = ["set -euo pipefail"]
        for block in self.blocks:
            parts.append(f'echo "--- {GUIDE.name}:{block.line}"')
            program = {"python": "python -", "sql": '"$RUN_SQL"'}.get(block.language)
            parts.append(f"{program} <<'{_HERE}'\n{block.content}{_HERE}" if program else block.content)
        return "\n".join(parts)


def read_blocks() -> list[Block]:
    """Every fenced block of the guide."""
    return list(_parse(GUIDE.read_text(encoding="utf-8").splitlines()))


def read_scenarios() -> list[Scenario]:
    """The scenarios, in the order in which they begin."""
    scenarios: dict[str, Scenario] = {}
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        if found := _SCENARIO.fullmatch(line):
            scenario = scenarios.setdefault(found[1], Scenario(found[1]))
            scenario.ends = found[2] or scenario.ends
    for block in read_blocks():
        if block.not_run is None and block.scenario is not None:
            scenarios[block.scenario].blocks.append(block)
    return list(scenarios.values())


def _parse(lines: list[str]) -> Iterator[Block]:
    scenario = not_run = None
    start: int | None = None
    language = ""
    for number, line in enumerate(lines, start=1):
        if start is None and line.startswith("```"):
            start, language = number, line.removeprefix("```")
        elif start is not None and line == "```":
            content = "".join(f"{inside}\n" for inside in lines[start : number - 1])
            yield Block(start, language, content, scenario, not_run)
            start = not_run = None
        elif start is None and (found := _SCENARIO.fullmatch(line)):
            scenario = found[1]
        elif start is None and (found := _NOT_RUN.fullmatch(line)):
            not_run = found[1]
