"""The command `bge-pipeline`: parses words, calls one function of another room, prints what it returned."""

from __future__ import annotations

# Each registers its commands, in the order in which the help shows them.
from bge_pipeline.cli import beginning, comparing, examining, migrating, observing, operating, tools  # noqa: F401
from bge_pipeline.cli.invocation import app, main

__all__ = ["app", "main"]
