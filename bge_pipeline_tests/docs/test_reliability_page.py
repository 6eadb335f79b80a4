"""Each row of the fault matrix in docs/reliability.md leads to a test that exists."""

from __future__ import annotations

import ast
import re

import pytest

from bge_pipeline_tests.roads import ROOT

PAGE = ROOT / "docs" / "reliability.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| |")]
MATRIX = [row for row in ROWS if "bge_pipeline_tests/" in row]
LINK = re.compile(r"\[(?P<file>\w+\.py)(?P<names>(?:::\w+)*)\]\(\.\./(?P<path>[\w/]+\.py)\)")


def test_every_fault_has_a_link() -> None:
    beginning = next(number for number, row in enumerate(ROWS) if row.startswith("| fault |"))
    assert len(MATRIX) == len(ROWS) - beginning - 1 > 30


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.split("|")[1].strip())
def test_the_linked_test_exists(row: str) -> None:
    links = list(LINK.finditer(row))
    assert links, row
    for link in links:
        path = ROOT / link["path"]
        assert path.name == link["file"]
        body: list[ast.stmt] = ast.parse(path.read_text()).body
        for name in link["names"].split("::")[1:]:
            found = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
            assert found, f"{name} is not in {link['path']}"
            assert name.startswith(("test_", "Test"))
            body = found[0].body
