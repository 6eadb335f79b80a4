"""What the installed pgvector can do, so that an index it cannot build is refused before anything is changed."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.catalog import pgvector_version
from bge_pipeline.database.indexes import MOST_DIMENSIONS_OF_VECTOR
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import Settings

_HALFVEC_SINCE = (0, 7)
"""https://github.com/pgvector/pgvector/blob/master/CHANGELOG.md"""


def version_obstacle(connection: Connection, settings: Settings) -> ConfigurationError | None:
    """The error with which a migration would be refused by what pgvector lacks, None where it has everything."""
    version = pgvector_version(connection) or "0"
    is_half = "halfvec" in (settings.index_element, settings.target_vector_type)
    is_large = settings.index_element == "auto" and settings.embedding_dimensions > MOST_DIMENSIONS_OF_VECTOR
    if (not is_half and not is_large) or _numbers(version) >= _HALFVEC_SINCE:
        return None
    name = "TARGET_VECTOR_TYPE" if settings.target_vector_type == "halfvec" else "INDEX_ELEMENT"
    return ConfigurationError(
        f"{name}=halfvec: expected pgvector 0.7 or later, got {version}",
        state="nothing was changed",
        next_step=f"{name}=vector; or, with pgvector 0.7 installed on the server: ALTER EXTENSION vector UPDATE;",
    )


def require_version(connection: Connection, settings: Settings) -> None:
    """Refuse settings that the installed pgvector cannot serve.

    Raises:
        ConfigurationError: names the setting and the version.
    """
    refusal = version_obstacle(connection, settings)
    if refusal is not None:
        raise refusal


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
