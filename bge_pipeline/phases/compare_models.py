"""Compare: which model should the table move to? Candidates are measured on a sample of its own texts. Changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from sqlalchemy import Connection

from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.indexes import hnsw_memory_bytes
from bge_pipeline.database.sampling import SampledRows, sample_texts, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.encoder import QueryEncoder, TextsRefused
from bge_pipeline.embedding.endpoint.address import is_of_endpoint, is_reachable_for
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.loading import HASHING, load_encoder, load_encoder_named, load_encoder_of
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError, ConfigurationError
from bge_pipeline.phases.comparison_cache import EmbeddedTask, cached
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import MigrationState, read_state
from bge_pipeline.quality.bounds import MIN_ROWS_PER_NEIGHBOUR
from bge_pipeline.quality.candidates import Task, judged_task, known_item_task
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.quality.label_free import Vectors, neighbour_agreement
from bge_pipeline.quality.metrics import paired_difference
from bge_pipeline.report.comparison import Candidate, ModelComparison
from bge_pipeline.settings import Settings

logger = logging.getLogger(__name__)

TEXTS = 1_000
ENDPOINT = "endpoint:"
"""How a candidate's name begins that the endpoint of EMBEDDING_API_URL serves; it ends in `@` and its dimensions."""
_OF_ONE_MODEL = (
    "embedding_query_prompt",
    "embedding_passage_prompt",
    "embedding_served_model",
    "embedding_tokenizer",
    "embedding_text_tokens",
)
"""Settings of an endpoint that are one model's and not the server's."""
_WARM_ENDPOINT_TEXTS = 8
_KNOWN_ITEMS = 200
_NEIGHBOURS = 20
_MILLION = 1_000_000
_HNSW_M = 16
"""pgvector's default."""


@dataclass(frozen=True)
class _Table:
    """What is asked of the table, once for all candidates."""

    state: MigrationState
    sample: SampledRows
    task: Task


def compare_models(
    migration: Migration,
    models: Sequence[str],
    *,
    judged: JudgedQueries | None = None,
    texts: int = TEXTS,
    may_send: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> ModelComparison:
    """Measure each model on the same texts and queries; the one that search reads now takes part where it is at hand.

    A text that a model does not take has no vector, and counts as not found.

    Args:
        migration: names the table, and the device; models run in the precision that suits them there.
        models: as EMBEDDING_MODEL takes them, or `endpoint:text-embedding-3-small@512`, to which texts are sent: ask before.
            Prompts, length and tokenizer of an endpoint are those of the settings for the model that they name alone.
        judged: queries with judged passages of the table; without them texts are searched for by words out of them.
        texts: rows to sample.
        may_send: whether the model that search reads now may be sent texts where it is an endpoint's; it is left out where not.
        on_step: told what is being measured.

    Raises:
        ConfigurationError: the table has too little text, or no model could be measured.
        TargetTableError: there is no such table.
    """
    with migration.database.autocommit() as connection:
        table = _read(connection, migration.settings, judged, texts)
    measured: list[tuple[Candidate, tuple[float, ...]]] = []
    failed: dict[str, str] = {}
    for name, is_current, load in _loaders(table.state, migration.settings, models):
        if is_current and not may_send and _endpoint_of_today(table.state, migration.settings, models) is not None:
            failed[name] = "it is behind an endpoint, to which nobody agreed to send texts"
            continue
        on_step(f"{name}: {len(table.task.texts):,} texts, {len(table.task.queries):,} queries")
        try:
            encoder = load()
            if encoder is not None:
                with closing(encoder):
                    measured.append(_measured(table, migration.settings, encoder, is_current=is_current))
        except BgePipelineError as error:
            failed[name] = error.message
            logger.warning("%s was not measured: %s", name, error.message)
    if not measured:
        raise ConfigurationError(
            "no model could be measured: " + "; ".join(f"{name}: {why}" for name, why in failed.items()),
            state="nothing was changed",
        )
    measured.sort(key=lambda found: -found[0].quality)
    best = measured[0][1]
    others = (replace(candidate, against_best=paired_difference(values, best)) for candidate, values in measured[1:])
    return ModelComparison(
        table=str(table.state.table.target),
        metric=table.task.metric,
        texts=len(table.task.texts),
        queries=len(table.task.queries),
        candidates=(measured[0][0], *others),
        failed=failed,
    )


def asked_endpoints(migration: Migration, models: Sequence[str]) -> list[str]:
    """Which models `compare_models` would have an endpoint embed texts with: candidates, and the one that search reads now."""
    with migration.database.autocommit() as connection:
        state = read_state(connection, migration.target)
    named = [name.removeprefix(ENDPOINT) for name in dict.fromkeys(models) if name.startswith(ENDPOINT)]
    today = _endpoint_of_today(state, migration.settings, models)
    return named if today is None else [*named, f"{today} of today"]


def _endpoint_of_today(state: MigrationState, settings: Settings, models: Sequence[str]) -> str | None:
    """The model that search reads now, where it takes part by itself and is an endpoint's."""
    space = state.current_space
    if space is None or space.model in models or not is_of_endpoint(space) or not is_reachable_for(settings):
        return None
    return space.model


def _read(connection: Connection, settings: Settings, judged: JudgedQueries | None, texts: int) -> _Table:
    state = read_state(connection, TargetTable.from_settings(settings))
    target, column = state.table.target, state.table.embedding
    sample = SampledRows([], [], {})
    if column.is_numeric:
        sample = sample_vectors(connection, target, [column.name], texts)
    found = sample.texts or sample_texts(connection, target, texts)
    if judged is None:
        return _Table(state, sample, known_item_task(found, _KNOWN_ITEMS))
    relevant = _texts_of(connection, target, judged.passages)
    ids = map(id_as_text, sample.ids)
    others = {i: text for i, text in zip(ids, sample.texts, strict=True) if i not in relevant}
    return _Table(state, sample, judged_task(judged, relevant, others))


def _texts_of(connection: Connection, target: TargetTable, ids: Sequence[str]) -> dict[str, str]:
    statement = target.sql(
        "SELECT {id_text} AS id, {text}::text AS text FROM {table} WHERE {id_text} = ANY (:ids) AND {text} IS NOT NULL"
    )
    return {row.id: row.text for row in connection.execute(statement, {"ids": list(ids)})}


def _loaders(
    state: MigrationState, settings: Settings, models: Sequence[str]
) -> Iterator[tuple[str, bool, Callable[[], QueryEncoder | None]]]:
    """Name, whether search reads its vectors now, and what loads it."""
    space = state.current_space
    for name in dict.fromkeys(models):
        yield name, False, partial(_load, name, settings)
    if space is not None and space.model not in models:
        yield space.model, True, lambda: load_encoder_of(space, settings)


def _load(name: str, settings: Settings) -> QueryEncoder:
    if name.startswith(ENDPOINT):
        return load_encoder(_endpoint_settings(name, settings))
    dimensions = settings.embedding_dimensions
    if name != HASHING:
        dimensions = find_sentence_model(name, allow_pickle=settings.allow_pickled_weights).dimensions
    return load_encoder_named(name, dimensions, settings)


def _endpoint_settings(name: str, settings: Settings) -> Settings:
    model, _, dimensions = name.removeprefix(ENDPOINT).rpartition("@")
    if not model or not dimensions.isdecimal():
        raise ConfigurationError(f"expected {ENDPOINT}MODEL@DIMENSIONS, got {name!r}", state="nothing was sent")
    chosen = {"embedding_provider": "openai", "embedding_model": model, "embedding_dimensions": int(dimensions)}
    if settings.embedding_provider != "openai" or settings.embedding_model != model:
        chosen |= {name: Settings.model_fields[name].default for name in _OF_ONE_MODEL}
    return settings.model_copy(update=chosen)


def _measured(
    table: _Table, settings: Settings, encoder: QueryEncoder, *, is_current: bool
) -> tuple[Candidate, tuple[float, ...]]:
    task, space = table.task, encoder.space
    embedded, was_cached = cached(settings.home / "comparisons", encoder, task, lambda: _embed(task, settings, encoder))
    values = task.values(embedded.queries, embedded.passages)
    column = table.state.table.embedding.name
    rate = len(task.texts) / embedded.seconds
    candidate = Candidate(
        model=space.model,
        is_current=is_current or space.is_same_as(table.state.current_space),
        precision=space.precision,
        device=encoder.device,
        dimensions=space.dimensions,
        quality=sum(values) / len(values),
        against_best=None,
        texts_per_second=rate,
        table_seconds=table.state.table.estimated_rows / rate,
        cut_off=embedded.cut_off,
        agreement=_agreement(table.sample, column, task, embedded),
        bytes_per_million=_MILLION * (4 * space.dimensions + 8)
        + hnsw_memory_bytes(_MILLION, space.dimensions, _HNSW_M, "vector" if space.dimensions <= 2_000 else "halfvec"),
        cost_per_million=_cost(encoder, task, settings),
        was_cached=was_cached,
        refused=embedded.refused,
    )
    return candidate, values


def _cost(encoder: QueryEncoder, task: Task, settings: Settings) -> float | None:
    price = settings.embedding_price_per_million
    if price is None or not isinstance(encoder, EndpointEncoder):
        return None
    return float(encoder.tokenize(task.texts).token_counts.mean()) * price


def _embed(task: Task, settings: Settings, encoder: QueryEncoder) -> EmbeddedTask:
    service = EmbeddingsService(encoder, settings)
    is_paid = isinstance(encoder, EndpointEncoder)
    _taken(service.encode_texts, task.texts[: _WARM_ENDPOINT_TEXTS if is_paid else len(task.texts) // 8 or 1])
    started = time.perf_counter()
    passages = _taken(service.encode_texts, task.texts)
    seconds = time.perf_counter() - started
    cut_off = float(encoder.tokenize(task.texts).truncated.mean())
    return EmbeddedTask(passages, _taken(service.encode_queries, task.queries), seconds, cut_off)


def _taken(embed: Callable[[Sequence[str]], Vectors], texts: Sequence[str]) -> Vectors:
    """Vectors of the texts; zeros for those that the model does not take."""
    try:
        return embed(texts)
    except TextsRefused as refusal:
        logger.warning("%s", refusal.message)
        refusal.vectors[list(refusal.reasons)] = 0
        return refusal.vectors


def _agreement(sample: SampledRows, column: str, task: Task, embedded: EmbeddedTask) -> float | None:
    """Neighbours that the candidate's and the stored vectors of the sample have in common, chance taken off."""
    if len(sample) < MIN_ROWS_PER_NEIGHBOUR * _NEIGHBOURS:
        return None
    places = {text: place for place, text in enumerate(task.texts)}
    has_vector = np.asarray(embedded.passages.any(axis=1))
    rows = [(row, places[text]) for row, text in enumerate(sample.texts) if text in places and has_vector[places[text]]]
    if len(rows) < MIN_ROWS_PER_NEIGHBOUR * _NEIGHBOURS:
        return None
    stored, made = zip(*rows, strict=True)
    found = neighbour_agreement(sample.vectors[column][list(stored)], embedded.passages[list(made)], _NEIGHBOURS)
    return found.above_chance
