"""Variables of earlier versions, translated into today's settings; each is noted once per process."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TypeVar

from bge_pipeline.errors import ConfigurationError

logger = logging.getLogger(__name__)

T = TypeVar("T")

RENAMED = {
    "EMBEDDINGS_PROVIDER": "EMBEDDING_PROVIDER",
    "EMBEDDINGS_MODEL": "EMBEDDING_MODEL",
    "EMBEDDINGS_DIM": "EMBEDDING_DIMENSIONS",
    "EMBEDDINGS_DEVICE": "EMBEDDING_DEVICE",
}
"""Old name to new name."""

PROFILES = {
    "speed": {"EMBEDDING_MODEL": "BAAI/bge-small-en-v1.5", "EMBEDDING_DIMENSIONS": "384"},
    "quality": {"EMBEDDING_MODEL": "Alibaba-NLP/gte-Qwen2-1.5B-instruct", "EMBEDDING_DIMENSIONS": "1536"},
}
"""What each value of EMBEDDING_PROFILE stands for."""

OLD_NAMES = (*RENAMED, "FORCE_CPU_ONLY", "EMBEDDING_PROFILE")

_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


def translate(variables: Mapping[str, str | None], taken: Collection[str]) -> dict[str, str]:
    """Values for today's settings, by field name, from whatever old variables there are.

    Args:
        variables: environment and `.env`, names in lower case.
        taken: fields that have a value by their own name, which wins.

    Raises:
        ConfigurationError: FORCE_CPU_ONLY or EMBEDDING_PROFILE has a value it may not have.
    """
    found: dict[str, str] = {}
    for old, value, meaning in _meanings(variables):
        free = {name: held for name, held in meaning.items() if name.lower() not in {*taken, *found}}
        # The model and the dimensions of a profile belong together.
        if old == "EMBEDDING_PROFILE" and "EMBEDDING_MODEL" not in free:
            free = {}
        _note(old, value, tuple(meaning.items()), is_used=bool(free))
        found |= {name.lower(): held for name, held in free.items()}
    return found


def _meanings(variables: Mapping[str, str | None]) -> list[tuple[str, str, dict[str, str]]]:
    """Each old variable that is set, with its value and what it means today; the first of two wins."""
    found = []
    if (switch := variables.get("force_cpu_only")) and _chosen("FORCE_CPU_ONLY", switch, _SWITCH):
        found.append(("FORCE_CPU_ONLY", switch, {"EMBEDDING_DEVICE": "cpu"}))
    for old, new in RENAMED.items():
        if value := variables.get(old.lower()):
            found.append((old, value, {new: value}))
    if profile := variables.get("embedding_profile"):
        found.append(("EMBEDDING_PROFILE", profile, _chosen("EMBEDDING_PROFILE", profile, PROFILES)))
    return found


def _chosen(name: str, held: str, choices: Mapping[str, T]) -> T:
    choice = choices.get(held.strip().lower())
    if choice is None:
        raise ConfigurationError(
            f"{name}: expected one of {', '.join(choices)} (held {held!r})",
            next_step="correct the variable in the environment or in .env",
        )
    return choice


@lru_cache
def _note(old: str, value: str, meaning: tuple[tuple[str, str], ...], *, is_used: bool) -> None:
    today = " and ".join(f"{name}={held}" for name, held in meaning)
    if is_used:
        logger.warning("%s=%s is deprecated and still understood: set %s instead", old, value, today)
    else:
        logger.warning("%s=%s is deprecated and ignored: %s is set otherwise", old, value, meaning[0][0])
