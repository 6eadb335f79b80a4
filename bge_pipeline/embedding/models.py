"""The models that can be run: what their files and their families say about dimensions, pooling, prompts and length."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_pipeline.embedding.declarations import declared_modules, declared_pooling, declared_prompts, declared_reading
from bge_pipeline.embedding.families import Published, family_of, published_as
from bge_pipeline.embedding.model_folder import digest, find_folder, read_json, read_json_if_there, weights
from bge_pipeline.embedding.pooling import POOLINGS
from bge_pipeline.embedding.tasks import EmbedTexts
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline.space import EmbeddingSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """A transformer's folder and what decides how it reads text.

    Attributes:
        name: as in the setting, or the model's own name for `bundled`.
        folder: where `config.json`, the weights and the tokenizer are.
        revision: digest of weights and tokenizer.
        max_tokens: tokens of a text that are read, special tokens included.
        lower_case: whether texts are lower-cased before they are tokenised.
    """

    name: str
    folder: Path
    revision: str
    max_tokens: int
    lower_case: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The transformer's `config.json`."""
        config: dict[str, Any] = read_json(self.folder / "config.json")
        return config

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """The tokenizer's own settings; empty where there are none."""
        return read_json_if_there(self.folder / "tokenizer_config.json")


@dataclass(frozen=True)
class SentenceModel:
    """A model that turns a text into one vector: a transformer and a pooling, described by its own files."""

    files: ModelFiles
    dimensions: int
    pooling: str
    query_prompt: str = ""
    passage_prompt: str = ""

    @property
    def task(self) -> EmbedTexts:
        """What its network is run for."""
        return EmbedTexts(self.pooling)

    def space(self, precision: str) -> EmbeddingSpace:
        """The embedding space of the vectors that this model makes in that arithmetic."""
        return EmbeddingSpace(
            model=self.files.name,
            revision=self.files.revision,
            dimensions=self.dimensions,
            pooling=self.pooling,
            query_prompt=self.query_prompt,
            passage_prompt=self.passage_prompt,
            max_tokens=self.files.max_tokens,
            precision=precision,
        )


def find_sentence_model(name: str, *, setting: str = "EMBEDDING_MODEL") -> SentenceModel:
    """The model of that name, with what its sentence-transformers files say.

    A folder without them is read as sentence-transformers reads it, with mean pooling, unless the model is known to
    want another.

    Args:
        name: hub name, local folder or `bundled`.
        setting: the variable to name when something is wrong.

    Raises:
        ModelUnavailable: no such folder, the hub does not have it or cannot be reached, or an extra is missing.
        ConfigurationError: it is no model of this kind.
    """
    name, folder = find_folder(name, setting)
    transformer_folder, pooling_config = folder, {}
    for kind, path in declared_modules(folder):
        if kind == "Transformer":
            transformer_folder = folder / path
        elif kind == "Pooling":
            pooling_config = read_json(folder / path / "config.json")
        elif kind != "Normalize":
            raise ConfigurationError(
                f"{setting}={name}: expected a transformer with pooling and normalisation, got a module `{kind}` as well"
            )
    pooling = declared_pooling(pooling_config)
    if pooling not in POOLINGS:
        raise ConfigurationError(f"{setting}={name}: expected one of the poolings {', '.join(POOLINGS)}, got {pooling}")
    config = _read_config(transformer_folder, name, setting)
    # What the model is called here, and what its files say that it was called where they came from.
    names = f"{name} {config.get('_name_or_path', '')}".strip()
    published = published_as(names)
    _check_pooling(names, pooling, published, setting, is_declared=bool(pooling_config))
    query_prompt, passage_prompt = declared_prompts(folder)
    return SentenceModel(
        files=_files(name, folder, transformer_folder, config),
        dimensions=int(config["hidden_size"]),
        pooling=pooling,
        query_prompt=query_prompt or (published.query_prompt if published else ""),
        passage_prompt=passage_prompt,
    )


def find_cross_encoder(name: str, *, setting: str = "RERANKER_MODEL") -> ModelFiles:
    """The files of a cross-encoder, a transformer that scores a pair of texts.

    Raises:
        ModelUnavailable: no such folder, or the hub does not have it or cannot be reached.
        ConfigurationError: it is no model of this kind.
    """
    name, folder = find_folder(name, setting)
    config = _read_config(folder, name, setting)
    outputs = len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
    if outputs != 1:
        raise ConfigurationError(f"{setting}={name}: expected a cross-encoder with one score, got {outputs} outputs")
    return _files(name, folder, folder, config)


def _check_pooling(name: str, pooling: str, published: Published | None, setting: str, *, is_declared: bool) -> None:
    """Refuse a guess that is known to be wrong; what the files declare stands, since a fine-tuned model may differ."""
    trained = published.pooling if published else None
    if is_declared:
        if trained not in (None, pooling):
            logger.warning("%s: models of this name pool by %s, but the files say %s", name, trained, pooling)
        return
    if trained not in (None, pooling):
        raise ConfigurationError(
            f"{setting}={name}: the folder does not say how the model pools; {pooling} would be assumed, and models "
            f"of this name pool by {trained}, so that every vector would be wrong",
            next_step="copy modules.json and 1_Pooling/config.json of the model into the folder",
        )
    logger.warning("%s: the folder does not say how the model pools; taken for %s pooling", name, pooling)


def _files(name: str, folder: Path, transformer_folder: Path, config: dict[str, Any]) -> ModelFiles:
    positions = int(config.get("max_position_embeddings", 512)) - family_of(config).first_position(config)
    max_tokens, lower_case = declared_reading(folder, transformer_folder, positions)
    return ModelFiles(name, transformer_folder, digest(transformer_folder), max_tokens, lower_case)


def _read_config(folder: Path, name: str, setting: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file() or not weights(folder):
        raise ModelUnavailable(
            f"{setting}={name}: expected config.json and model.safetensors (or pytorch_model.bin) in {folder}"
        )
    config: dict[str, Any] = read_json(folder / "config.json")
    if "hidden_size" not in config:
        raise ConfigurationError(f"{setting}={name}: expected a text encoder with `hidden_size` in config.json")
    return config
