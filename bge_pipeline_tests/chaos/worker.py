"""The process that migrates: a fork of a server that has the libraries loaded, so that it begins at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["bge_pipeline_tests.chaos.loaded"])

DAGSTER = ("dagster",)
"""In place of a command's arguments: the whole migration through Dagster's jobs."""


class Worker:
    """A process that runs `bge-pipeline` with these arguments, or Dagster's jobs."""

    def __init__(self, arguments: tuple[str, ...], variables: dict[str, str], output: Path) -> None:
        self.output = output
        self.process = _FORKS.Process(target=_run, args=(arguments, variables, str(output)))
        self.process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def said(self) -> str:
        """What it printed."""
        return self.output.read_text() if self.output.exists() else ""


def _run(arguments: tuple[str, ...], variables: dict[str, str], output: str) -> None:
    with Path(output).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(variables["BGE_PIPELINE_HOME"])
    if arguments == DAGSTER:
        sys.exit(_through_dagster())
    from bge_pipeline.cli import main

    sys.argv = ["bge-pipeline", *arguments]
    main()


def _through_dagster() -> int:
    from bge_pipeline.errors import BgePipelineError
    from bge_pipeline.orchestration.in_process import migrate_through_dagster
    from bge_pipeline.settings import load_settings

    try:
        migrate_through_dagster(load_settings())
    except BgePipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except Exception:  # noqa: BLE001 - Dagster's own errors, when its database goes away beneath it
        sys.stderr.write("Dagster: " + traceback.format_exc().replace("Traceback", "traceback"))
        return 1
    return 0
