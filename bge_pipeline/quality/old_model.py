"""The model that made the old column's vectors, where it is at hand: noted with the column, or declared and proved."""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.loading import load_encoder_named, load_encoder_of
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.label_free import stored_vectors_match
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_DECLARED_SAMPLE_ROWS = 32


def old_encoder(connection: Connection, settings: Settings, columns: ComparedColumns) -> QueryEncoder | None:
    """The encoder that made the old column's vectors, where it is at hand: noted with the column, or declared."""
    if columns.old is None or columns.old.type_name not in SEARCHABLE_TYPES:
        return None
    if columns.old_space is not None:
        return load_encoder_of(columns.old_space, settings)
    if "legacy_model" not in settings.model_fields_set:
        return None
    return _declared_encoder(connection, settings, columns.table.target, columns.old)


def _declared_encoder(
    connection: Connection, settings: Settings, target: TargetTable, column: Column
) -> QueryEncoder | None:
    """LEGACY_MODEL, if it is here and makes the vectors that the column holds of the same texts."""
    sample = sample_vectors(connection, target, [column.name], _DECLARED_SAMPLE_ROWS)
    if not len(sample):
        return None
    try:
        encoder = load_encoder_named(settings.legacy_model, sample.vectors[column.name].shape[1], settings)
    except (ModelUnavailable, ConfigurationError) as error:
        logger.warning("LEGACY_MODEL=%s cannot be used: %s", settings.legacy_model, error.message)
        return None
    made = encoder.encode(encoder.tokenize(sample.texts))
    found = stored_vectors_match(sample.vectors[column.name], made)
    if found.matching_share < 0.5:
        logger.warning(
            "LEGACY_MODEL=%s did not make the vectors in %r (%s): the new vectors are measured alone",
            settings.legacy_model,
            column.name,
            found.summary(),
        )
        return None
    return encoder
