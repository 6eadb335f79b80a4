"""Folders of sentence-transformers models with random weights, one of every kind that people use, built on the spot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

VOCABULARY = 30_522
WIDTH = 32

NAMES = (
    "bert", "roberta", "roberta-own-tokenizer", "xlm-roberta", "distilbert", "mpnet", "modernbert", "qwen3-lasttoken", "t5",
    "dense", "layer-norm", "static", "model2vec", "weightedmean", "mean-sqrt-len", "cls-and-mean", "e5-prompts", "instructor",
)  # fmt: skip


def build(name: str, folder: Path, tokenizer_from: Path) -> Path:
    """The model of that name in a new folder, tokenised as the model in `tokenizer_from` is."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(7)
    if name == "model2vec":
        return _model2vec(folder, tokenizer_from)
    modules = _modules(name, folder.with_name(f"{folder.name}-plain"), tokenizer_from)
    prompts = {"query": "query: ", "document": "passage: "} if name in ("e5-prompts", "instructor") else None
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder


def _modules(name: str, plain: Path, tokenizer_from: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer
    from torch import nn

    if name == "static":
        tokenizer = Tokenizer.from_file(str(tokenizer_from / "tokenizer.json"))
        return [modules.StaticEmbedding(tokenizer, embedding_dim=WIDTH)]
    network = name if name in _networks() else "bert"
    _networks()[network]().save_pretrained(plain)
    if name == "roberta-own-tokenizer":
        _byte_level_tokenizer(plain)
    else:
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            shutil.copy(tokenizer_from / file, plain)
    transformer = modules.Transformer(str(plain), max_seq_length=64)
    pooling, others = {
        "qwen3-lasttoken": ("lasttoken", [modules.Normalize()]),
        "dense": ("mean", [modules.Dense(WIDTH, 24, activation_function=nn.Tanh()), modules.Normalize()]),
        "layer-norm": ("mean", [modules.LayerNorm(WIDTH)]),
        "weightedmean": ("weightedmean", []),
        "mean-sqrt-len": ("mean_sqrt_len_tokens", []),
        "cls-and-mean": (("cls", "mean"), []),
    }.get(name, ("mean", [modules.Normalize()]))
    return [transformer, modules.Pooling(WIDTH, pooling, include_prompt=name != "instructor"), *others]


def _networks() -> dict[str, Any]:
    import transformers

    common = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "pad_token_id": 0}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    usual = common | heads | {"hidden_size": WIDTH}
    return {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**usual)),
        "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**usual)),
        "roberta-own-tokenizer": lambda: transformers.RobertaModel(
            transformers.RobertaConfig(**(usual | {"pad_token_id": 1}), max_position_embeddings=300)
        ),
        "xlm-roberta": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**usual)),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(**common, dim=WIDTH, hidden_dim=64, n_layers=2, n_heads=2)
        ),
        "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**usual)),
        "modernbert": lambda: transformers.ModernBertModel(
            transformers.ModernBertConfig(**usual, local_attention=8, global_attn_every_n_layers=2)
        ),
        "qwen3-lasttoken": lambda: transformers.Qwen3Model(
            transformers.Qwen3Config(**usual, num_key_value_heads=1, head_dim=16)
        ),
        "t5": lambda: transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=VOCABULARY, d_model=WIDTH, num_layers=2, num_heads=2, d_kv=16, d_ff=64)
        ),
    }


def _byte_level_tokenizer(folder: Path) -> None:
    """As RoBERTa's: byte pairs, and special tokens that are found in texts which write them out."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>", **names
    ).save_pretrained(folder)


def _model2vec(folder: Path, tokenizer_from: Path) -> Path:
    """As the makers of model2vec publish theirs: embeddings under a name of their own."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    embeddings = np.random.default_rng(7).standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
    save_file({"embeddings": embeddings}, folder / "model.safetensors")
    shutil.copy(tokenizer_from / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    kinds = (
        "sentence_transformers.models.StaticEmbedding",
        ".",
        "sentence_transformers.models.Normalize",
        "1_Normalize",
    )
    listing = [
        {"idx": index, "name": str(index), "path": kinds[2 * index + 1], "type": kinds[2 * index]} for index in (0, 1)
    ]
    (folder / "modules.json").write_text(json.dumps(listing))
    return folder
