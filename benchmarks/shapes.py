"""Models with the architectures of real ones and random weights: right for speed, meaningless for quality.

They read texts with the bundled model's tokenizer, so that every one of them is given the same tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bge_pipeline.embedding.models import find_sentence_model

BGE_SMALL = "BGE-small's shape, random weights"
GTE_QWEN2 = "GTE-Qwen2-1.5B's shape, random weights"

_LONGEST = 512
"""Tokens read of a text."""


def bge_small(folder: Path) -> Path:
    """A folder with BAAI/bge-small-en-v1.5's architecture: 33 million parameters, 384 dimensions."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30_522, hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1_536
    )
    return _saved(folder, BertModel, config, "cls")


def gte_qwen2(folder: Path) -> Path:
    """A folder with Alibaba-NLP/gte-Qwen2-1.5B-instruct's architecture: 1.5 billion parameters, 1536 dimensions.

    Six gigabytes, and as many in memory while it is made.
    """
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(
        vocab_size=151_646, hidden_size=1_536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8_960, max_position_embeddings=131_072, rms_norm_eps=1e-6, pad_token_id=0,
        auto_map={"AutoModel": "modeling_qwen.Qwen2Model"},
    )  # fmt: skip
    return _saved(folder, Qwen2Model, config, "lasttoken")


def copy_tokenizer(folder: Path) -> None:
    """Put the bundled model's tokenizer into the folder of another model."""
    source = find_sentence_model("bundled").files.folder
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(source / name, folder)


def _saved(folder: Path, architecture: Any, config: Any, pooling: str) -> Path:
    """The folder, made unless it is there already."""
    if (folder / "sentence_bert_config.json").exists():
        return folder
    import torch

    torch.manual_seed(0)
    architecture(config).save_pretrained(folder)
    copy_tokenizer(folder)
    shutil.copy(find_sentence_model("bundled").files.folder / "modules.json", folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    pooled = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": False,
        "pooling_mode_lasttoken": pooling == "lasttoken",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooled))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": _LONGEST, "do_lower_case": False}))
    return folder
