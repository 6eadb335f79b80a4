"""Code that comes with a model's weights: never run, but for the version that TRUST_REMOTE_CODE names."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from bge_pipeline.embedding.model_folder import COMMIT, is_snapshot, read_json, read_json_if_there
from bge_pipeline.errors import ConfigurationError

_log = logging.getLogger(__name__)

_LIBRARY = "sentence_transformers"


def brings_code(folder: Path) -> bool:
    """Whether files of a model name classes in code of its own folder."""
    return any("--" not in reference for reference in _references(folder))


def require_trusted(name: str, folder: Path, trusted: str | None) -> str | None:
    """The version of the code that makes the model, where it may run; None where there is none or nothing is trusted.

    Args:
        name: the model's, for messages.
        trusted: the value of TRUST_REMOTE_CODE.

    Raises:
        ConfigurationError: the code is of another version, or of another repository and no commit of that is named.
    """
    if trusted is None or not _references(folder):
        return None
    if not brings_code(folder):
        _require_commit(name, folder, trusted)
        found = trusted
    elif (found := version_of_code(folder)) != trusted:
        raise ConfigurationError(
            f"TRUST_REMOTE_CODE={trusted}, but the code that comes with {name} is {found}",
            next_step=f"read the Python files in {folder}, then set TRUST_REMOTE_CODE={found}",
        )
    _log.warning("%s: code that comes with the model is run, as of %s", name, found)
    return found


def version_of_code(folder: Path) -> str:
    """The commit of a hub's snapshot; of another folder a digest of its Python files, `sha256:` and 16 digits."""
    if is_snapshot(folder):
        return folder.name
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        whole.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{whole.hexdigest()[:16]}"


def _require_commit(name: str, folder: Path, trusted: str) -> None:
    """Refuse a branch or a tag of the repository that holds the code: whoever writes there moves it."""
    if COMMIT.fullmatch(trusted) is None:
        there = ", ".join(sorted({reference.partition("--")[0] for reference in _references(folder)}))
        raise ConfigurationError(
            f"TRUST_REMOTE_CODE={trusted}: expected the 40 digits of a commit of {there}, which holds the code that {name} names",
            next_step="read its Python files at a commit, then set TRUST_REMOTE_CODE to that",
        )


def _references(folder: Path) -> list[str]:
    """Classes in code of the model's own that its files name, of networks and of modules; `--` in it: of another repository."""
    listing = folder / "modules.json"
    modules = read_json(listing) if listing.is_file() else [{"type": "", "path": ""}]
    references = [module["type"] for module in modules if module["type"].partition(".")[0] not in ("", _LIBRARY)]
    for module in modules:
        auto_map = read_json_if_there(folder / module["path"] / "config.json").get("auto_map") or {}
        references += [reference for reference in auto_map.values() if isinstance(reference, str)]
    return references
