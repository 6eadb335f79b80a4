"""What a model's own files declare: its modules, pooling, prompts and length, in either generation of these files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bge_pipeline.embedding.model_folder import read_json, read_json_if_there

_POOLING_OF_MODULE_PATH = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_MATRYOSHKA_OF_CARD = re.compile(r'"matryoshka_dims": \[([^\]]*)\]')


def declared_modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and sub-folder of each module, in order; none for a plain transformer."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return []
    return [(module["type"].rpartition(".")[2], module["path"]) for module in read_json(listing)]


def declared_pooling(config: dict[str, Any]) -> str:
    """Name of the pooling, from either generation of the configuration file."""
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return mode if isinstance(mode, str) else "+".join(mode)
    chosen = [pooling for key, pooling in _POOLING_OF_MODULE_PATH.items() if config.get(key)]
    return "+".join(chosen) or "mean"


def declared_prompts(folder: Path) -> tuple[str, str]:
    """Query and passage prompt, by the names that sentence-transformers looks for; empty where there is none."""
    declared = read_json_if_there(folder / "config_sentence_transformers.json")
    prompts: dict[str, str] = {key: text for key, text in (declared.get("prompts") or {}).items() if text}
    default = prompts.get(declared.get("default_prompt_name") or "", "")
    query = prompts.get("query", default)
    passage = next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), default)
    return query, passage


def declared_reading(folder: Path, transformer_folder: Path, positions: int) -> tuple[int, bool]:
    """How texts are read: the most tokens of one, special tokens included, and whether it is lower-cased first.

    Args:
        folder: the model's.
        transformer_folder: the transformer's, where that is another.
        positions: tokens for which the network has position embeddings.
    """
    candidates = (transformer_folder / "sentence_bert_config.json", folder / "sentence_bert_config.json")
    declared = read_json_if_there(next((path for path in candidates if path.is_file()), candidates[0]))
    tokenizer = read_json_if_there(transformer_folder / "tokenizer_config.json")
    longest = declared.get("max_seq_length") or min(positions, tokenizer.get("model_max_length") or positions)
    return int(longest), bool(declared.get("do_lower_case", False))


def declared_matryoshka(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Dimensions to which vectors were trained to be cut, ascending; none where no file names any.

    Asked are the model's `config.json`, its sentence-transformers file, and the card that the library's trainer writes.

    Args:
        config: the transformer's.
    """
    own = read_json_if_there(folder / "config_sentence_transformers.json")
    named = [own.get("truncate_dim")]
    for declared in (config, own):
        for key in ("matryoshka_dimensions", "matryoshka_dims"):
            named += declared.get(key) or []
    card = folder / "README.md"
    if card.is_file():
        lists = _MATRYOSHKA_OF_CARD.findall(card.read_text(encoding="utf-8", errors="replace"))
        named += [int(number) for numbers in lists for number in re.findall(r"\d+", numbers)]
    return tuple(sorted({int(number) for number in named if number}))
