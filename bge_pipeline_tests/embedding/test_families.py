"""Each entry of the table, one test an entry: its networks run as sentence-transformers runs them, in every way they may."""

import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from bge_pipeline.embedding.calibration import vector_guard
from bge_pipeline.embedding.families import (
    BERT,
    DISTILBERT,
    FAMILIES,
    GTE_QWEN2,
    MPNET,
    OTHER,
    ROBERTA,
    ROBERTA_VARIANTS,
    T5,
    family_of,
    published_as,
)
from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.tasks import EmbedTexts
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.torch_backend import load_torch_backend
from bge_pipeline_tests.embedding.conftest import TEXTS, attend_text_by_text

BGE_PROMPT = "Represent this sentence for searching relevant passages: "
SHORT_TEXTS = [text[:400] for text in TEXTS]
"""Short enough for the position embeddings of all."""

TOO_LONG_TO_PACK = 1_025
"""Tokens in its longest text with which a model is no longer run over packed rows."""


def by_sentence_transformers(files, pooling):
    """What the library makes of SHORT_TEXTS."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(files.folder), max_seq_length=files.max_tokens)
    width = transformer.get_embedding_dimension()
    modules = [transformer, Pooling(width, pooling_mode=pooling), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu").encode(SHORT_TEXTS)


def by_pytorch(files, pooling, attend=None):
    tokenizer = Tokenizer(files)
    options = {"device": "cpu", "precision": "fp32", "pad_id": tokenizer.pad_id, "attend": attend}
    backend = load_torch_backend(files, EmbedTexts(pooling), **options)
    return backend.run(tokenizer.texts(SHORT_TEXTS)[0], max_texts=3)


def by_openvino(files, pooling, home):
    from bge_pipeline.embedding.openvino.cache import ConvertedModels

    # One graph of a model, whatever is pooled.
    key = f"{files.folder.parent.name}-{files.folder.name}-{files.max_tokens}"
    tokenizer, backend = ConvertedModels(home / "models", key, files, EmbedTexts(pooling)).load(
        "fp32", vector_guard(None)
    )
    vectors = backend.run(tokenizer.texts(SHORT_TEXTS)[0], max_texts=64)
    backend.close()
    return vectors


@pytest.fixture
def every_way(tiny_models, home):
    """Vectors of SHORT_TEXTS, by each way in which a model may be run here.

    One converted graph a network, and for BERT the padded one too, which long models of its family run on.
    """

    def run(files, pooling):
        layouts = family_of(files.config).layouts
        yield by_pytorch(files, pooling)
        if EndToEnd in layouts:
            yield by_pytorch(files, pooling, attend_text_by_text)
        if find_spec("openvino"):
            yield by_openvino(files, pooling, home)
        if find_spec("openvino") and files is tiny_models["bert"]:
            yield by_openvino(replace(files, max_tokens=TOO_LONG_TO_PACK), pooling, home)

    return run


@pytest.mark.thorough
def test_bert(tiny_models, every_way):
    files = tiny_models["bert"]
    assert family_of(files.config) is BERT
    assert BERT.half_on_cuda == "fp16"
    assert BERT.first_position(files.config) == 0
    for pooling in ("cls", "mean", "max", "lasttoken"):
        expected = by_sentence_transformers(files, pooling)
        for vectors in every_way(files, pooling):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert published_as("BAAI/bge-small-en-v1.5").query_prompt == BGE_PROMPT
    assert [published_as(f"BAAI/{name}").pooling for name in ("bge-large-en-v1.5", "bge-small-zh")] == ["cls", "cls"]
    assert published_as("BAAI/bge-small-zh-v1.5").query_prompt == ""
    assert published_as("sentence-transformers/all-MiniLM-L6-v2").pooling == "mean"
    assert published_as("intfloat/e5-base-v2").pooling == "mean"


@pytest.mark.parametrize("network", ["roberta", "xlm-roberta"])
@pytest.mark.thorough
def test_roberta_and_xlm_roberta(tiny_models, every_way, network):
    files = tiny_models[network]
    assert family_of(files.config) is ROBERTA
    assert ROBERTA.half_on_cuda == "fp16"
    assert ROBERTA.first_position({"pad_token_id": 1}) == 2
    expected = by_sentence_transformers(files, "mean")
    for vectors in every_way(files, "mean"):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert published_as("BAAI/bge-m3").pooling == "cls"
    assert published_as("intfloat/multilingual-e5-large").pooling == "mean"


def test_variants_of_roberta(tiny_models):
    files = tiny_models["roberta-prelayernorm"]
    assert family_of(files.config) is family_of({"model_type": "xlm-roberta-xl"}) is ROBERTA_VARIANTS
    assert ROBERTA_VARIANTS.half_on_cuda == "bf16"
    assert ROBERTA_VARIANTS.first_position({"pad_token_id": 1}) == 2
    assert not ROBERTA_VARIANTS.layouts
    np.testing.assert_allclose(by_pytorch(files, "mean"), by_sentence_transformers(files, "mean"), atol=1e-5)


def test_gte_qwen2(tiny_models, every_way):
    files = tiny_models["gte-qwen2"]
    assert family_of(files.config) is GTE_QWEN2
    assert family_of({"model_type": "qwen2", "is_causal": False}) is GTE_QWEN2
    assert GTE_QWEN2.half_on_cuda == "bf16"
    assert not GTE_QWEN2.layouts
    for pooling in ("cls", "lasttoken"):
        expected = attention_without_a_mask(files, pooling)
        for vectors in every_way(files, pooling):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert GTE_QWEN2.ending({"add_eos_token": True, "eos_token": "<|endoftext|>"}) == "<|endoftext|>"
    assert GTE_QWEN2.ending({"add_eos_token": True, "eos_token": {"content": "<|im_end|>"}}) == "<|im_end|>"
    assert GTE_QWEN2.ending({"eos_token": "<|endoftext|>"}) is None
    assert published_as("Alibaba-NLP/gte-Qwen2-1.5B-instruct").pooling == "lasttoken"


def attention_without_a_mask(files, pooling):
    """What Qwen2 makes of SHORT_TEXTS one by one when its attention looks both ways, computed as the paper writes it."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModel

    def attend(module, query, key, value, _mask, scaling, **_others):
        key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
        weights = torch.softmax(query @ key.transpose(2, 3) * scaling, dim=-1)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("both_ways", attend)
    AttentionMaskInterface.register("both_ways", lambda *_args, **_kwargs: None)
    model = AutoModel.from_pretrained(files.folder, attn_implementation="both_ways", trust_remote_code=False).eval()
    tokens, _ = Tokenizer(files).texts(SHORT_TEXTS)
    vectors = []
    with torch.inference_mode():
        for first, last in zip(tokens.offsets, tokens.offsets[1:], strict=False):
            states = model(torch.from_numpy(tokens.ids[first:last].astype(np.int64))[None]).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(states[0 if pooling == "cls" else -1], dim=0).numpy())
    return np.stack(vectors)


@pytest.mark.thorough
def test_distilbert(tiny_models, every_way):
    files = tiny_models["distilbert"]
    assert family_of(files.config) is DISTILBERT
    assert DISTILBERT.half_on_cuda == "fp16"
    assert not DISTILBERT.layouts
    expected = by_sentence_transformers(files, "mean")
    for vectors in every_way(files, "mean"):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_mpnet(tiny_models):
    files = tiny_models["mpnet"]
    assert family_of(files.config) is MPNET
    assert MPNET.first_position({"pad_token_id": 1}) == 2
    assert not MPNET.layouts
    assert MPNET.mask is None
    np.testing.assert_allclose(by_pytorch(files, "mean"), by_sentence_transformers(files, "mean"), atol=1e-5)


def test_t5():
    for network in ("t5", "mt5", "umt5"):
        assert family_of({"model_type": network}) is T5
    assert "encoder-decoder" in T5.obstacle


@pytest.mark.parametrize(("network", "pooling"), [("electra", "mean"), ("qwen2", "lasttoken"), ("qwen2", "cls")])
def test_other(tiny_models, network, pooling):
    files = tiny_models[network]
    assert family_of(files.config) is OTHER
    assert OTHER.half_on_cuda == "bf16"
    assert OTHER.first_position(files.config) == 0
    assert not OTHER.layouts
    np.testing.assert_allclose(by_pytorch(files, pooling), by_sentence_transformers(files, pooling), atol=1e-5)
    assert published_as("sentence-transformers/all-mpnet-base-v2").pooling == "mean"


def test_an_unknown_name_is_not_taken_for_a_known_one():
    assert published_as("/models/ours-small-en") is None


@pytest.mark.parametrize("family", [*FAMILIES, OTHER], ids=lambda family: family.name)
def test_every_entry_has_its_test(family):
    assert f"test_{re.sub(r'[^a-z0-9]+', '_', family.name.lower())}" in globals()


def test_the_longest_text_is_shorter_where_positions_begin_later(tiny_models, tmp_path):
    config = tiny_models["xlm-roberta"].config
    assert config["max_position_embeddings"] - ROBERTA.first_position(config) == 299
    folder = tiny_models["xlm-roberta"].folder
    assert find_sentence_model(str(folder)).files.max_tokens == 299
