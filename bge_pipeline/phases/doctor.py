"""Doctor: what is wrong with the vectors that search reads today, graded, each finding with what to do. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import Connection

from bge_pipeline.database.catalog import Column
from bge_pipeline.database.indexes import Index
from bge_pipeline.database.partition_indexes import serving_indexes
from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.database.sql import quote
from bge_pipeline.database.target import TargetTable
from bge_pipeline.database.trigger import trigger_fault
from bge_pipeline.database.user_triggers import find_user_triggers
from bge_pipeline.embedding.encoder import QueryEncoder
from bge_pipeline.embedding.endpoint.address import would_send_unasked
from bge_pipeline.errors import BgePipelineError, ConsentRequired
from bge_pipeline.phases.companion import load_recorded
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.safeguards import watched_columns
from bge_pipeline.phases.state import MigrationState, looking_again, read_state
from bge_pipeline.phases.surroundings import warnings_of
from bge_pipeline.quality.columns import ComparedColumns
from bge_pipeline.quality.content import LENGTH, ColumnContent, read_content
from bge_pipeline.quality.index_recall import recall_at_k
from bge_pipeline.quality.label_free import StoredVectorAgreement, stored_vectors_match
from bge_pipeline.quality.old_model import old_encoder
from bge_pipeline.report.diagnosis import Diagnosis, Finding, Grade
from bge_pipeline.settings import Settings

SAMPLE_ROWS = 100_000
"""Rows looked at where nobody asks for all of them."""
_COMPARED_ROWS = 256
_LEAST_RECALL = 0.95
_FEW_ROWS = 10_000
"""So many are searched without an index in milliseconds."""
_MATCHING_SHARE = 0.99
_ANOTHER_MODEL_SHARE = 0.5


@looking_again
def examine(migration: Migration, *, most_rows: int | None = SAMPLE_ROWS) -> Diagnosis:
    """Look at the column that search reads; on a replica too.

    Args:
        migration: names the table, and the model where nobody recorded one (LEGACY_MODEL).
        most_rows: rows to look at, on random pages; None for every row.

    Raises:
        TargetTableError: there is no such table or column.
    """
    target = migration.target
    with migration.database.autocommit() as connection:
        state = read_state(connection, target)
        column = state.table.embedding
        content = read_content(connection, target, column, most_rows)
        indexes = serving_indexes(connection, state.table, column.number)
        findings = [
            *_content_findings(content, state, indexes),
            *_index_findings(migration, target, content, indexes, divided=state.table.is_partitioned),
            *([_model_finding(connection, migration.settings, state)] if len(content.dimensions) < 2 else ()),
            *_upkeep_findings(connection, state),
            *(Finding("surroundings", "warning", told) for told in warnings_of(connection, state)),
        ]
    space = state.current_space
    return Diagnosis(
        table=str(target),
        column=column.name,
        column_type=column.full_type,
        model=space.model if space is not None else None,
        content=content,
        findings=tuple(findings),
    )


def _content_findings(content: ColumnContent, state: MigrationState, indexes: list[Index]) -> Iterator[Finding]:
    among = f" of {content.rows:,} rows looked at"
    fill = (
        "bge-pipeline embed"
        if state.phase in ("swapped", "retired")
        else "have the application embed them; bge-pipeline migrate fills a new column alone"
    )
    if not content.vectors:
        yield Finding("vectors", "error", f"no vector{among}", fill)
        return
    if content.without_vector:
        yield Finding(
            "vectors", "warning", f"{content.without_vector:,}{among} have text and no vector: search misses them", fill
        )
    else:
        yield Finding("vectors", "ok", f"every row with text has a vector ({content.vectors:,}{among})")
    if content.without_text:
        yield Finding("texts", "note", f"{content.without_text:,}{among} have a vector and no text that it could be of")
    yield _dimensions_finding(content)
    if content.zero:
        column = quote(state.table.embedding.name)
        length = LENGTH[state.table.embedding.type_name].format(column=column)
        yield Finding(
            "lengths",
            "error",
            f"{content.zero:,} vectors have length zero: their cosine distance is no number, and search misplaces them",
            f"empty them: UPDATE {state.table.target} SET {column} = NULL WHERE {length} = 0; then {fill}",
        )
    if content.not_unit:
        by_product = any(
            " vector_ip_ops" in index.definition or "halfvec_ip_ops" in index.definition for index in indexes
        )
        yield Finding(
            "lengths",
            "warning" if by_product else "note",
            f"{content.not_unit:,} vectors are not of unit length (from {content.shortest:.3g} to {content.longest:.3g})"
            + (
                ": the inner product, by which the index orders, prefers the long ones"
                if by_product
                else "; cosine does not mind"
            ),
        )
    elif not content.zero and content.longest is not None:
        yield Finding("lengths", "ok", "every vector has unit length")
    if content.shared:
        share = content.shared / content.vectors
        yield Finding(
            "duplicates",
            "warning" if share > 0.01 else "note",
            f"{content.shared:,} rows ({share:.1%}) have the vector of a row with another text: cut off at the model's length, "
            "equal but for what the tokeniser drops, or wrong",
        )


def _dimensions_finding(content: ColumnContent) -> Finding:
    told = ", ".join(f"{rows:,} of {dimensions}" for dimensions, rows in content.dimensions.items())
    if len(content.dimensions) > 1:
        return Finding(
            "dimensions",
            "error",
            f"vectors of several dimensions in one column ({told}): a search that meets two of them fails",
            "filter by what tells them apart (a collection, a model), or migrate, which gives every row the same",
        )
    return Finding("dimensions", "ok", f"all vectors have the same ({told or 'not told for this type'})")


def _index_findings(
    migration: Migration, target: TargetTable, content: ColumnContent, indexes: list[Index], *, divided: bool
) -> Iterator[Finding]:
    beside = "" if divided else "CONCURRENTLY "
    for index in indexes:
        if not index.valid:
            drop = f"DROP INDEX {beside}{quote(target.schema)}.{quote(index.name)};"
            yield Finding(
                "invalid index", "error", f"{index.name} is not valid: writes keep it, no search uses it", drop
            )
    valid = [index for index in indexes if index.valid]
    if not valid:
        grade: Grade = "warning" if content.is_sample or content.rows > _FEW_ROWS else "note"
        yield Finding(
            "index",
            grade,
            "no index serves this column: each search compares every row",
            "CREATE INDEX CONCURRENTLY ... USING hnsw" + " on each partition, which is what a migration does" * divided,
        )
        return
    if not content.vectors or len(content.dimensions) > 1:
        return
    try:
        found = recall_at_k(migration.database, migration.settings)
    except BgePipelineError as error:
        yield Finding("index", "note", f"its recall was not measured: {error.message}")
        return
    effort = ", ".join(f"{name}={value}" for name, value in found.session.items())
    told = f"{found.index} finds {found.recall:.1%} of the {found.k} nearest with {effort or 'its defaults'}"
    if found.recall < _LEAST_RECALL:
        yield Finding("index", "warning", told, "raise SEARCH_PROBES or SEARCH_EF_SEARCH, or rebuild the index")
    else:
        yield Finding("index", "ok", told)


def _model_finding(connection: Connection, settings: Settings, state: MigrationState) -> Finding:
    """Whether the model at hand makes the stored vectors of the stored texts."""
    column, space = state.table.embedding, state.current_space
    try:
        encoder = _encoder(connection, settings, state)
        found = _made_again(connection, state.table.target, column, encoder) if encoder is not None else None
    except BgePipelineError as error:
        return Finding(
            "model", "note", f"the model of these vectors did not make them again: {error.message}", error.next_step
        )
    if encoder is None:
        return Finding(
            "model",
            "note",
            f"whether texts and vectors match was not looked at: {space.model if space else 'their model'} is not at hand",
            None if space else "name it: LEGACY_MODEL=",
        )
    if found is None:
        return Finding("model", "note", "there is no row to compare the model with")
    if found.matching_share < _ANOTHER_MODEL_SHARE:
        return Finding(
            "model",
            "error",
            f"{encoder.space.model} does not make these vectors: {found.summary()}",
            "bge-pipeline migrate",
        )
    if found.matching_share < _MATCHING_SHARE:
        return Finding(
            "model",
            "warning",
            f"some vectors are not those of their texts, which are newer or were embedded otherwise: {found.summary()}",
            "empty those vectors, then bge-pipeline embed"
            if state.phase in ("swapped", "retired")
            else "bge-pipeline migrate",
        )
    return Finding("model", "ok", found.summary())


def _encoder(connection: Connection, settings: Settings, state: MigrationState) -> QueryEncoder | None:
    space = state.current_space
    if space is not None and would_send_unasked(space, settings):
        raise ConsentRequired(
            f"{space.model} is behind an endpoint, to which texts would be sent",
            next_step="bge-pipeline doctor --set EMBEDDING_PROVIDER=openai",
        )
    if space is not None:
        return load_recorded(space, settings)
    return old_encoder(connection, settings, ComparedColumns(state.table, state.table.embedding, state.table.embedding))


def _made_again(
    connection: Connection, target: TargetTable, column: Column, encoder: QueryEncoder
) -> StoredVectorAgreement | None:
    with closing(encoder):
        rows = sample_vectors(connection, target, [column.name], _COMPARED_ROWS)
        if not len(rows):
            return None
        return stored_vectors_match(rows.vectors[column.name], encoder.encode(encoder.tokenize(rows.texts)))


def _upkeep_findings(connection: Connection, state: MigrationState) -> Iterator[Finding]:
    """Whether a change of a text reaches its vector; a fault of this project's own trigger is among the surroundings."""
    if state.phase in ("swapped", "retired"):
        watched = watched_columns(state)
        if watched is not None and trigger_fault(connection, state.table, watched) is None:
            told = "a changed text loses its vector at once; bge-pipeline embed or Dagster's sensor makes the new one"
            yield Finding("upkeep", "ok", told)
        return
    own = [str(trigger) for trigger in find_user_triggers(connection, state.table)]
    if own:
        yield Finding("upkeep", "note", f"triggers of the application may keep it current: {', '.join(own)}")
        return
    yield Finding(
        "upkeep",
        "note",
        "nothing in the database keeps it current: whoever changes a text has to write its vector too",
        "bge-pipeline migrate brings a trigger that empties the vector of a changed text",
    )
