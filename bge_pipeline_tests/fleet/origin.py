"""Where a run's code is, as the code server tells it with every run."""

from __future__ import annotations

import sys
from typing import Any

from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin


def code_of(job: str, **container: Any) -> JobPythonOrigin:
    """The job in this project's code location; `container` says of which image and with what."""
    pointer = ModuleCodePointer("bge_pipeline.definitions", "defs", None)
    return JobPythonOrigin(job, RepositoryPythonOrigin(sys.executable, pointer, **container))
