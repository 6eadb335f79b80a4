"""Models of every kind that people use, built on the spot: each gives the library's vectors, on whichever way it takes."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from bge_pipeline.embedding.loading import configured_space, load_encoder
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.proof import PROOF_BOUNDS, odd_texts
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline_tests.embedding.built import NAMES, WIDTH, build
from bge_pipeline_tests.embedding.conftest import TEXTS

OUR_OWN = (
    "bert", "roberta", "roberta-own-tokenizer", "xlm-roberta", "distilbert", "mpnet", "modernbert", "qwen3-lasttoken",
    "e5-prompts",
)  # fmt: skip

POOLINGS = {
    "dense": "mean, Dense",
    "layer-norm": "mean, LayerNorm",
    "static": "StaticEmbedding",
    "model2vec": "StaticEmbedding",
    "weightedmean": "weightedmean",
    "mean-sqrt-len": "mean_sqrt_len_tokens",
    "cls-and-mean": "cls+mean",
    "instructor": "mean without the prompt",
    "qwen3-lasttoken": "lasttoken",
}

SAMPLE = [*odd_texts(64), *TEXTS]


@pytest.fixture
def settings_of(settings, bundled, tmp_path):
    """Builds the model of a name and gives settings that name it, in fp32 on PyTorch where nothing else is asked for."""

    def make(name, **options):
        folder = build(name, tmp_path / name, bundled.files.folder)
        width = find_sentence_model(str(folder)).width
        asked = {"embedding_backend": "torch", "embedding_precision": "fp32", "embedding_dimensions": width}
        return settings.model_copy(
            update={"embedding_model": str(folder), "bge_pipeline_home": tmp_path / "home"} | asked | options
        )

    return make


def agree_with_library(encoder, folder, texts, **options):
    """Assert that passages and queries have the vectors that the library gives them as it stands."""
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(folder, device="cpu", **options)
    passages = library.encode_document(texts, normalize_embeddings=True)
    queries = library.encode_query(texts, normalize_embeddings=True)
    for tokens, expected in ((encoder.tokenize(texts), passages), (encoder.tokenize_queries(texts), queries)):
        vectors = encoder.encode(tokens)
        assert vectors.dtype == np.float32
        # Static embeddings make no vector of a text without words.
        is_vector = np.linalg.norm(expected, axis=1) > 0.5
        assert is_vector.sum() >= len(texts) - 3
        assert (vectors * expected).sum(axis=1)[is_vector].min() >= PROOF_BOUNDS["min_cosine"]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1)[is_vector], 1, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_gives_the_vectors_of_the_library(settings_of, name):
    settings = settings_of(name)
    encoder = load_encoder(settings)
    assert encoder.road.library == ("PyTorch" if name in OUR_OWN else "sentence-transformers")
    assert encoder.space.pooling == POOLINGS.get(name, "mean")
    assert configured_space(settings).is_same_as(encoder.space)
    agree_with_library(encoder, settings.embedding_model, SAMPLE)
    encoder.close()


@pytest.mark.skipif(not find_spec("openvino"), reason="the extra `openvino` is not installed")
@pytest.mark.parametrize(
    "name",
    [name if "own-tokenizer" in name else pytest.param(name, marks=pytest.mark.thorough) for name in OUR_OWN],
)
def test_what_openvino_runs_gives_them_too_and_what_it_cannot_goes_to_pytorch(settings_of, name):
    settings = settings_of(name, embedding_backend="auto")
    encoder = load_encoder(settings)
    assert encoder.road.library in (("OpenVINO",) if "roberta" in name else ("OpenVINO", "PyTorch"))
    agree_with_library(encoder, settings.embedding_model, SAMPLE)
    encoder.close()


@pytest.mark.skipif(not find_spec("openvino"), reason="the extra `openvino` is not installed")
@pytest.mark.thorough
def test_openvino_that_was_asked_for_and_cannot_says_why_in_one_line(settings_of):
    with pytest.raises(ModelUnavailable, match=r"cannot convert the model for OpenVINO: \w+: .") as caught:
        load_encoder(settings_of("modernbert", embedding_backend="openvino"))
    assert "\n" not in caught.value.message
    assert "raph" not in caught.value.message


@pytest.mark.parametrize("name", ["bert", "dense"])
@pytest.mark.parametrize("size", [8, 16])
def test_vectors_that_are_cut_are_those_of_the_library_cut(settings_of, name, size):
    settings = settings_of(name, embedding_dimensions=size, embedding_truncate=True)
    encoder = load_encoder(settings)
    assert encoder.space.dimensions == size
    agree_with_library(encoder, settings.embedding_model, SAMPLE, truncate_dim=size)
    whole = configured_space(settings.model_copy(update={"embedding_dimensions": WIDTH if name == "bert" else 24}))
    assert not whole.is_same_as(encoder.space)
    encoder.close()


def test_in_bf16_the_library_is_compared_with_itself_in_fp32(settings_of, caplog):
    encoder = load_encoder(settings_of("dense", embedding_precision="bf16"))
    if encoder.space.precision == "bf16":
        assert encoder.road.proof.figures["min_cosine"] >= PROOF_BOUNDS["min_cosine"]
    else:
        assert "sentence-transformers in bf16 on cpu does not give the vectors" in caplog.text
    encoder.close()


def test_many_lengths_at_once_keep_their_order(settings_of):
    encoder = load_encoder(settings_of("dense"))
    texts = [f"text {number} " * (number % 40) + "end" for number in range(120)]
    together = encoder.encode(encoder.tokenize(texts), batch_size=7)
    alone = np.concatenate([encoder.encode(encoder.tokenize([text])) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    encoder.close()


def test_memory_that_runs_out_is_met_with_smaller_batches(settings_of, monkeypatch):
    import torch

    encoder = load_encoder(settings_of("dense"))
    texts = [f"text {number}" for number in range(16)]
    expected = encoder.encode(encoder.tokenize(texts))
    run, sizes = encoder._run, []

    def short(batch, *, is_query):
        sizes.append(len(batch))
        if len(batch) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return run(batch, is_query=is_query)

    monkeypatch.setattr(encoder, "_run", short)
    np.testing.assert_allclose(encoder.encode(encoder.tokenize(texts)), expected, atol=1e-5)
    assert max(sizes) == 16
    assert sizes.count(4) >= 4
    encoder.close()
