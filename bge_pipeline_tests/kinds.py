"""Cases of one kind as parameters of a test, of which some stand for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def kinds(cases: Mapping[str, Any], *every_time: str) -> list[Any]:
    """A parameter for each case, by its name; those that are not named in `every_time` are marked thorough."""
    unknown = set(every_time) - set(cases)
    assert not unknown, f"no such case: {unknown}"
    return [
        pytest.param(case, id=name.replace(" ", "-"), marks=[] if name in every_time else [pytest.mark.thorough])
        for name, case in cases.items()
    ]
