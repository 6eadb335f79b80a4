"""The command `bge-pipeline`: parses words, calls one function of another room, prints what it returned."""

from __future__ import annotations

from bge_pipeline.cli.commands import main

__all__ = ["main"]
