"""What the installed pgvector can do, so that an index it cannot build is refused before anything is changed."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.catalog import pgvector_version, version_numbers
from bge_pipeline.database.indexes import MOST_DIMENSIONS_OF_VECTOR
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import Settings

_HNSW_SINCE, _HALFVEC_SINCE = "0.5", "0.7"
"""https://github.com/pgvector/pgvector/blob/master/CHANGELOG.md"""


def version_obstacle(connection: Connection, settings: Settings) -> ConfigurationError | None:
    """The error with which a migration would be refused by what pgvector lacks, None where it has everything."""
    version = pgvector_version(connection)
    if settings.target_vector_type == "halfvec":
        asked, instead, since = "TARGET_VECTOR_TYPE=halfvec", "TARGET_VECTOR_TYPE=vector", _HALFVEC_SINCE
    elif settings.index_element == "halfvec":
        asked, instead, since = "INDEX_ELEMENT=halfvec", "INDEX_ELEMENT=vector", _HALFVEC_SINCE
    elif settings.index_element == "auto" and settings.embedding_dimensions > MOST_DIMENSIONS_OF_VECTOR:
        asked = f"an index on {settings.embedding_dimensions:,} dimensions, more than {MOST_DIMENSIONS_OF_VECTOR:,}"
        instead, since = "a model of fewer dimensions", _HALFVEC_SINCE
    elif settings.index_method == "hnsw":
        asked, instead, since = "INDEX_METHOD=hnsw", "INDEX_METHOD=ivfflat", _HNSW_SINCE
    else:
        return None
    if version_numbers(version) >= version_numbers(since):
        return None
    return ConfigurationError(
        f"{asked}: expected pgvector {since} or later, got {version}",
        state="nothing was changed",
        next_step=f"{instead}; or, with pgvector {since} installed on the server: ALTER EXTENSION vector UPDATE;",
    )


def require_version(connection: Connection, settings: Settings) -> None:
    """Refuse settings that the installed pgvector cannot serve.

    Raises:
        ConfigurationError: names the setting and the version.
    """
    refusal = version_obstacle(connection, settings)
    if refusal is not None:
        raise refusal
