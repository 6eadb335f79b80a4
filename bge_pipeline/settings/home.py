"""The data folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bge_pipeline.settings.group import Group


class HomeSettings(Group):
    """The folder for what this project keeps: the embedded PostgreSQL, converted models, Dagster's home."""

    bge_pipeline_home: Path = Field(
        Path(".bge-pipeline"), description="folder for the embedded PostgreSQL, converted models and Dagster's home"
    )

    @property
    def home(self) -> Path:
        """The data folder as an absolute path."""
        return self.bge_pipeline_home.expanduser().resolve()
