"""The model that made the old column's vectors, where it is at hand: noted with the column, or declared and proved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import PLAIN_SENTENCE, QueryEncoder
from bge_pipeline.embedding.endpoint.address import is_of_endpoint
from bge_pipeline.embedding.loading import load_encoder_named, load_encoder_of
from bge_pipeline.errors import BgePipelineError, OutOfMemory
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.label_free import stored_vectors_match
from bge_pipeline.search.column import SEARCHABLE_TYPES
from bge_pipeline.settings import Settings
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)

_DECLARED_SAMPLE_ROWS = 32


def old_encoder(connection: Connection, settings: Settings, columns: ComparedColumns) -> QueryEncoder | None:
    """The encoder that made the old column's vectors, where it is at hand: noted with the column, or declared.

    One that fails on a plain sentence is not; nor, with KEEP_OLD_CURRENT=off, is one behind an endpoint.
    """
    if columns.old is None or columns.old.type_name not in SEARCHABLE_TYPES:
        return None
    if columns.old_space is not None:
        return _recorded_encoder(columns.old_space, settings)
    if "legacy_model" not in settings.model_fields_set:
        return None
    return _declared_encoder(connection, settings, columns.table.target, columns.old)


@contextmanager
def released(encoder: QueryEncoder | None) -> Iterator[QueryEncoder | None]:
    """The same encoder, if there is one, whose memory and connections are given back at the end of the block."""
    try:
        yield encoder
    finally:
        if encoder is not None:
            encoder.close()


def _recorded_encoder(space: EmbeddingSpace, settings: Settings) -> QueryEncoder | None:
    if is_of_endpoint(space) and settings.keep_old_current == "off":
        return None
    with ExitStack() as stack:
        try:
            encoder = load_encoder_of(space, settings)
            if encoder is not None:
                stack.callback(encoder.close)
                encoder.encode(encoder.tokenize_queries([PLAIN_SENTENCE]))
        except OutOfMemory:
            raise  # the model is at hand: what is measured without it would pass for whole
        except BgePipelineError as error:
            logger.warning("%s, the model of the old vectors, cannot be asked: %s", space.model, error.message)
            return None
        stack.pop_all()
    return encoder


def _declared_encoder(
    connection: Connection, settings: Settings, target: TargetTable, column: Column
) -> QueryEncoder | None:
    """LEGACY_MODEL, if it is here and makes the vectors that the column holds of the same texts."""
    sample = sample_vectors(connection, target, [column.name], _DECLARED_SAMPLE_ROWS)
    if not len(sample):
        return None
    with ExitStack() as stack:
        try:
            encoder = load_encoder_named(settings.legacy_model, sample.vectors[column.name].shape[1], settings)
            stack.callback(encoder.close)
            made = encoder.encode(encoder.tokenize(sample.texts))
        except OutOfMemory:
            raise
        except BgePipelineError as error:
            logger.warning("LEGACY_MODEL=%s cannot be used: %s", settings.legacy_model, error.message)
            return None
        found = stored_vectors_match(sample.vectors[column.name], made)
        if found.matching_share < 0.5:
            logger.warning(
                "LEGACY_MODEL=%s did not make the vectors in %r (%s): the new vectors are measured alone",
                settings.legacy_model,
                column.name,
                found.summary(),
            )
            return None
        stack.pop_all()
    return encoder
