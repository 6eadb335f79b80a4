"""What the settings change in a model: its prompts, its dimensions, and whether its own code runs."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace

from bge_pipeline.embedding.models import SentenceModel, find_sentence_model
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import ModelSettings
from bge_pipeline.space import EmbeddingSpace

_log = logging.getLogger(__name__)

_RETRIEVE = "Represent this sentence for searching relevant passages: "
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@dataclass(frozen=True)
class _TrainedPrompts:
    """What well-known models were trained with, from their model cards."""

    names: re.Pattern[str]
    query: str
    passage: str = ""


_TRAINED_WITH = (
    _TrainedPrompts(re.compile(r"\be5-.*instruct|\bgte-qwen2|\bqwen3-embedding", re.IGNORECASE), _INSTRUCT),
    _TrainedPrompts(re.compile(r"\be5-(small|base|large)", re.IGNORECASE), "query: ", "passage: "),
    _TrainedPrompts(
        re.compile(r"\b(nomic-embed-text|modernbert-embed)", re.IGNORECASE), "search_query: ", "search_document: "
    ),
    _TrainedPrompts(re.compile(r"\bsnowflake-arctic-embed-\w+-v2", re.IGNORECASE), "query: "),
    _TrainedPrompts(re.compile(r"\b(mxbai-embed|snowflake-arctic-embed)", re.IGNORECASE), _RETRIEVE),
)


def configured_model(settings: ModelSettings) -> SentenceModel:
    """The model of EMBEDDING_MODEL as the settings want it run.

    Raises:
        ModelUnavailable: it cannot be found.
        ConfigurationError: it is no model of this kind, does not have EMBEDDING_DIMENSIONS dimensions and may not be cut to
            them, or its code is not the one of TRUST_REMOTE_CODE.
    """
    found = find_sentence_model(
        settings.embedding_model,
        trusted_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickled_weights,
    )
    query, passage = settings.embedding_query_prompt, settings.embedding_passage_prompt
    return replace(
        found,
        query_prompt=found.query_prompt if query is None else query,
        passage_prompt=found.passage_prompt if passage is None else passage,
        dimensions=_dimensions(found, settings),
    )


def as_recorded(model: SentenceModel, space: EmbeddingSpace) -> SentenceModel:
    """A model with the prompts of a recorded space, and cut to its dimensions where it has more."""
    return replace(
        model,
        query_prompt=space.query_prompt,
        passage_prompt=space.passage_prompt,
        dimensions=min(space.dimensions, model.width),
    )


def warn_of_missing_prompts(model: SentenceModel) -> None:
    """Say so where models of that name were trained with prompts and this one has none."""
    known = next((known for known in _TRAINED_WITH if known.names.search(model.files.name)), None)
    lacks = known is not None and (
        (known.query and not model.query_prompt) or (known.passage and not model.passage_prompt)
    )
    if known is None or not lacks:
        return
    _log.warning(
        "%s: models of this name were trained with %r before a query and %r before a passage, and its folder does not say so; "
        "set EMBEDDING_QUERY_PROMPT%s",
        model.files.name,
        known.query,
        known.passage,
        " and EMBEDDING_PASSAGE_PROMPT" if known.passage else "",
    )


def _dimensions(model: SentenceModel, settings: ModelSettings) -> int:
    """EMBEDDING_DIMENSIONS, if the model's vectors have so many or may be cut to so many."""
    wanted = settings.embedding_dimensions
    if wanted == model.width:
        return wanted
    # The default is no wish: it must not cut the vectors of whoever forgot to set it.
    was_set = "embedding_dimensions" in settings.model_fields_set
    if was_set and wanted < model.width and (settings.embedding_truncate or wanted in model.matryoshka):
        return wanted
    declared = [str(size) for size in model.matryoshka if size < model.width]
    ways_out = [f"set EMBEDDING_DIMENSIONS={model.width}" + f" or one of {', '.join(declared)}" * bool(declared)]
    if wanted < model.width:
        ways_out.append("set EMBEDDING_TRUNCATE=1 beside it to cut vectors that may not be made for it")
    raise ConfigurationError(
        f"EMBEDDING_DIMENSIONS={wanted}, but {model.files.name} makes vectors of {model.width} dimensions",
        next_step="; ".join((*ways_out, "or choose another EMBEDDING_MODEL")),
    )
