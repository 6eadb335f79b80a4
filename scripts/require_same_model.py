"""Exit with 3 where search reads vectors of another model than the settings name, and say how the next migration begins."""

from __future__ import annotations

import sys

from bge_pipeline.embedding.loading import configured_space
from bge_pipeline.errors import BgePipelineError, PhaseError
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.settings import Settings, load_settings


def require_same_model(settings: Settings) -> None:
    """Return if search on the table, whose migration is over, reads vectors of the model that the settings name.

    Raises:
        PhaseError: it reads others.
        ModelUnavailable: the model cannot be found.
    """
    space = configured_space(settings)
    with Migration.looked_at(settings) as migration:
        state = require_table(migration)
    if space.is_same_as(state.current_space):
        return
    retire = "bge-pipeline retire, which drops the vectors of the model before it, then " if state.previous else ""
    raise PhaseError(
        f"search reads vectors of {state.current_space or 'a model not recorded'}, and the settings name {space}",
        state="nothing was changed",
        next_step=f"if that is to be the next migration, {retire}bge-pipeline plan and bge-pipeline migrate, which asks first; "
        "if not, set EMBEDDING_MODEL and EMBEDDING_DIMENSIONS back",
    )


if __name__ == "__main__":
    try:
        require_same_model(load_settings())
    except BgePipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
