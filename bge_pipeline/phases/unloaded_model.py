"""What can be said of the configured model without loading it: its embedding space, and how fast it last was on this table."""

from __future__ import annotations

from dataclasses import dataclass

from bge_pipeline.database.journal import last_backfill
from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.phases.migration import Migration
from bge_pipeline.space import EmbeddingSpace


@dataclass(frozen=True)
class UnloadedModel:
    """A model that nobody has loaded.

    Attributes:
        space: the embedding space of its vectors.
        device: where it last ran on this table, `not loaded` where it never did.
        texts_per_second: of that backfill; 0 where there was none.
    """

    space: EmbeddingSpace
    device: str = "not loaded"
    texts_per_second: float = 0.0

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.space.dimensions


def unloaded_model(migration: Migration) -> UnloadedModel:
    """The configured model, from its files and the table's journal.

    Raises:
        ModelUnavailable: the model cannot be found.
    """
    space = configured_space(migration.settings)
    with migration.database.autocommit() as connection:
        last = last_backfill(connection, migration.target, space.model)
    if last is None:
        return UnloadedModel(space)
    return UnloadedModel(space, last.facts["device"], last.facts["texts_per_second"])
