"""The models that can be run: what their files and their families say about dimensions, pooling, prompts and length."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bge_pipeline.embedding.declarations import (
    declared_matryoshka,
    declared_modules,
    declared_pooling,
    declared_prompts,
    declared_reading,
)
from bge_pipeline.embedding.families import Published, family_of, published_as
from bge_pipeline.embedding.library import ALL_TOKENS, declared_by_library, width_by_transformers
from bge_pipeline.embedding.model_folder import (
    digest,
    digest_of_modules,
    find_folder,
    read_json,
    read_json_if_there,
    require_tensors_alone,
    snapshot_with_code,
    static_width,
    weights,
)
from bge_pipeline.embedding.pooling import POOLINGS
from bge_pipeline.embedding.tasks import EmbedTexts
from bge_pipeline.embedding.trusted_code import brings_code, require_trusted
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
        """The transformer's `config.json`; empty for a model without a transformer that has none."""
        return read_json_if_there(self.folder / "config.json")

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """The tokenizer's own settings; empty where there are none."""
        return read_json_if_there(self.folder / "tokenizer_config.json")


@dataclass(frozen=True)
class SentenceModel:
    """A model that turns a text into one vector: the modules of its folder, described by its own files.

    Attributes:
        files: of the transformer, or of the module that takes its place.
        dimensions: of a vector as it is stored; fewer than `width` where it is cut off.
        pooling: how states become a vector, or the module that does it in a model without a transformer.
        whole_folder: with `modules.json`, where there is one.
        width: dimensions of what the last module gives.
        steps: kinds of the modules beside transformer, pooling and normalisation, in order.
        declares_pooling: whether the files say how the model pools.
        excludes_prompt: whether the states of a prompt are left out of the pooling (`include_prompt: false`).
        matryoshka: dimensions to which the files say that a vector may be cut; empty where they name none.
        has_transformer: whether it has one at all; static embeddings have none.
        trusted_code: the identity of the code from its folder that makes its network; None where none is run.
    """

    files: ModelFiles
    dimensions: int
    pooling: str
    query_prompt: str = ""
    passage_prompt: str = ""
    whole_folder: Path = field(kw_only=True)
    width: int = field(kw_only=True)
    steps: tuple[str, ...] = ()
    declares_pooling: bool = True
    excludes_prompt: bool = False
    matryoshka: tuple[int, ...] = ()
    has_transformer: bool = True
    trusted_code: str | None = None

    @property
    def task(self) -> EmbedTexts:
        """What its network is run for."""
        return EmbedTexts(self.pooling)

    @property
    def obstacle(self) -> str | None:
        """What only sentence-transformers runs of this model, in words; None where our own ways may run it."""
        if self.trusted_code is not None:
            return "the code that comes with it"
        if not self.has_transformer:
            return f"what it has in place of a transformer, {self.pooling}"
        if self.steps:
            return f"its module {', '.join(self.steps)}"
        if self.pooling not in POOLINGS:
            return f"its pooling, {self.pooling}"
        if self._leaves_prompt_out:
            return "its pooling, which leaves the prompt out"
        return family_of(self.files.config).obstacle

    def space(self, precision: str) -> EmbeddingSpace:
        """The embedding space of the vectors that this model makes in that arithmetic."""
        pooling = f"{self.pooling} without the prompt" if self._leaves_prompt_out else self.pooling
        return EmbeddingSpace(
            model=self.files.name,
            revision=self.files.revision,
            dimensions=self.dimensions,
            pooling=", ".join((pooling, *self.steps)),
            query_prompt=self.query_prompt,
            passage_prompt=self.passage_prompt,
            max_tokens=self.files.max_tokens,
            precision=precision,
        )

    @property
    def _leaves_prompt_out(self) -> bool:
        return self.excludes_prompt and bool(self.query_prompt or self.passage_prompt)


def find_sentence_model(
    name: str, *, setting: str = "EMBEDDING_MODEL", trusted_code: str | None = None, allow_pickle: bool = False
) -> SentenceModel:
    """The model of that name, with what its sentence-transformers files say.

    A folder without them is read as sentence-transformers reads it, with mean pooling, unless the model is known to
    want another.

    Args:
        name: hub name, local folder or `bundled`.
        setting: the variable to name when something is wrong.
        trusted_code: the version of its own code that may run; the hub's snapshot is then of that commit.
        allow_pickle: whether its weights may be in pickle's format.

    Raises:
        ModelUnavailable: no such folder, the hub does not have it or cannot be reached, an extra is missing, or its weights
            are in a format that is not allowed.
        ConfigurationError: it is no model of this kind, or its code is of another version.
    """
    name, folder = find_folder(name, setting, allow_pickle=allow_pickle)
    if trusted_code is not None and brings_code(folder):
        folder = snapshot_with_code(name, folder, trusted_code, setting)
    code = require_trusted(name, folder, trusted_code)
    modules = declared_modules(folder) or [("Transformer", "")]
    require_tensors_alone(name, [folder / path for _, path in modules], setting, allow_pickle=allow_pickle)
    if "Transformer" not in (kind for kind, _ in modules):
        return _without_transformer(name, folder, modules, code)
    transformer_folder = folder / next(path for kind, path in modules if kind == "Transformer")
    pooling_config: dict[str, Any] = next(
        (read_json(folder / path / "config.json") for kind, path in modules if kind == "Pooling"), {}
    )
    steps = [(kind, folder / path) for kind, path in modules if kind not in ("Transformer", "Pooling", "Normalize")]
    pooling = declared_pooling(pooling_config)
    config = _read_config(transformer_folder, name, setting)
    # What the model is called here, and what its files say that it was called where they came from.
    names = f"{name} {config.get('_name_or_path', '')}".strip()
    published = published_as(names)
    _check_pooling(names, pooling, published, setting, is_declared=bool(pooling_config))
    query_prompt, passage_prompt = declared_prompts(folder)
    width = _width(transformer_folder, config)
    width = width and width * len(pooling.split("+"))
    for kind, module_folder in steps:
        width = width and _width_after(kind, module_folder, width)
    width = width or declared_by_library(folder, name, code).width
    files = _files(name, folder, transformer_folder, config)
    return SentenceModel(
        files=replace(files, revision=digest_of_modules(files.revision, steps, code)),
        dimensions=width,
        pooling=pooling,
        query_prompt=query_prompt or (published.query_prompt if published else ""),
        passage_prompt=passage_prompt,
        whole_folder=folder,
        width=width,
        steps=tuple(kind for kind, _ in steps),
        declares_pooling=bool(pooling_config),
        excludes_prompt=pooling_config.get("include_prompt") is False,
        matryoshka=declared_matryoshka(folder, config),
        trusted_code=code,
    )


def find_cross_encoder(name: str, *, setting: str = "RERANKER_MODEL", allow_pickle: bool = False) -> ModelFiles:
    """The files of a cross-encoder, a transformer that scores a pair of texts.

    Raises:
        ModelUnavailable: no such folder, the hub does not have it or cannot be reached, or its weights are in pickle's
            format, which is not allowed.
        ConfigurationError: it is no model of this kind.
    """
    name, folder = find_folder(name, setting, allow_pickle=allow_pickle)
    require_tensors_alone(name, [folder], setting, allow_pickle=allow_pickle)
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
    return config


def _without_transformer(name: str, folder: Path, modules: list[tuple[str, str]], code: str | None) -> SentenceModel:
    """A model of other modules, static embeddings for one, which sentence-transformers alone runs."""
    first, path = modules[0]
    steps = [(kind, folder / path) for kind, path in modules[1:] if kind != "Normalize"]
    query_prompt, passage_prompt = declared_prompts(folder)
    width = static_width(folder / path) if first == "StaticEmbedding" else None
    for kind, module_folder in steps:
        width = width and _width_after(kind, module_folder, width)
    if width is None:
        by_library = declared_by_library(folder, name, code)
        width, max_tokens = by_library.width, by_library.max_tokens
    else:
        max_tokens = ALL_TOKENS
    revision = digest_of_modules("", [(first, folder / path), *steps], code)
    return SentenceModel(
        files=ModelFiles(name, folder / path, revision, max_tokens),
        dimensions=width,
        pooling=first,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        whole_folder=folder,
        width=width,
        steps=tuple(kind for kind, _ in steps),
        matryoshka=declared_matryoshka(folder, {}),
        has_transformer=False,
        trusted_code=code,
    )


def _width(folder: Path, config: dict[str, Any]) -> int | None:
    """Dimensions of a transformer's states, None where only the library can tell; families have many names for them."""
    width = config.get("hidden_size") or width_by_transformers(folder)
    return int(width) if width is not None else None


def _width_after(kind: str, folder: Path, width: int) -> int | None:
    """Dimensions after a module that takes vectors of `width`, None where only the library can tell."""
    if kind == "Dense":
        dense = read_json_if_there(folder / "config.json")
        is_of_vectors = dense.get("module_output_name") in (None, "sentence_embedding")
        return dense.get("out_features") if is_of_vectors else None
    return width if kind in ("LayerNorm", "Dropout") else None
