"""Weights in pickle's format: refused, then read by PyTorch's restricted loader where that was asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bge_pipeline.embedding.library import load_by_library
from bge_pipeline.embedding.loading import is_at_hand, load_encoder
from bge_pipeline.embedding.models import find_cross_encoder, find_sentence_model
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline_tests.embedding.built import build
from bge_pipeline_tests.embedding.conftest import TEXTS


class RunsCode:
    """Written into a pickle, it touches a file where a loader obeys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def pickle_weights(folder: Path) -> None:
    """The same tensors, as they were published before safetensors."""
    safe = folder / "model.safetensors"
    torch.save(load_file(safe), folder / "pytorch_model.bin")
    safe.unlink()


@pytest.fixture
def settings(settings, folder, tmp_path):
    chosen = {"embedding_model": str(folder), "embedding_dimensions": 32, "embedding_precision": "fp32"}
    return settings.model_copy(update=chosen | {"embedding_backend": "torch", "bge_pipeline_home": tmp_path / "home"})


def test_they_are_refused_and_read_where_that_was_asked_for(settings, folder):
    with_tensors = load_encoder(settings)
    expected = with_tensors.encode(with_tensors.tokenize(TEXTS))
    pickle_weights(folder)
    with pytest.raises(ModelUnavailable, match=r"pytorch_model\.bin is in pickle's format") as refused:
        load_encoder(settings)
    assert "ALLOW_PICKLED_WEIGHTS=true" in refused.value.next_step
    allowing = settings.model_copy(update={"allow_pickled_weights": True})
    allowed = load_encoder(allowing)
    np.testing.assert_allclose(allowed.encode(allowed.tokenize(TEXTS)), expected, atol=1e-6)
    assert not is_at_hand(allowed.space, settings), "as the model of old vectors"
    assert is_at_hand(allowed.space, allowing)


def test_those_of_a_module_behind_the_transformer_too(bundled, tmp_path):
    folder = build("dense", tmp_path / "dense", bundled.files.folder)
    (dense,) = folder.glob("*_Dense")
    pickle_weights(dense)
    with pytest.raises(ModelUnavailable, match=r"_Dense/pytorch_model\.bin is in pickle's format"):
        find_sentence_model(str(folder))
    assert find_sentence_model(str(folder), allow_pickle=True).steps == ("Dense",)


def test_those_of_a_reranker_too(tiny_cross_encoder, tmp_path):
    folder = shutil.copytree(tiny_cross_encoder, tmp_path / "reranker")
    pickle_weights(folder)
    with pytest.raises(ModelUnavailable, match=r"RERANKER_MODEL=.* is in pickle's format"):
        find_cross_encoder(str(folder))
    assert find_cross_encoder(str(folder), allow_pickle=True).folder == folder


def test_what_would_run_code_is_refused_even_then(settings, folder, tmp_path):
    pickle_weights(folder)
    touched = tmp_path / "touched"
    torch.save({"embeddings": RunsCode(touched)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="hold more than tensors"):
        load_encoder(settings.model_copy(update={"allow_pickled_weights": True}))
    with pytest.raises(ModelUnavailable, match="hold more than tensors"):
        load_by_library(folder, "ours", device="cpu")
    assert not touched.exists()
