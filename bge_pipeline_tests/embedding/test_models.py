import json
import shutil

import pytest

from bge_pipeline.embedding.models import find_cross_encoder, find_sentence_model
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import write_json


def test_the_bundled_model_says_what_it_is(bundled):
    assert (bundled.dimensions, bundled.pooling, bundled.files.max_tokens) == (384, "mean", 256)
    assert bundled.files.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert bundled.query_prompt == ""


def test_a_folder_says_what_it_is(folder):
    model = find_sentence_model(str(folder))
    assert (model.dimensions, model.pooling, model.files.max_tokens) == (32, "cls", 64)


def test_a_copy_is_the_same_space_and_other_weights_are_another(folder, tiny_sentence_model):
    original = find_sentence_model(str(tiny_sentence_model)).space("fp32")
    assert find_sentence_model(str(folder)).space("int8").is_same_as(original)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert not find_sentence_model(str(folder)).space("fp32").is_same_as(original)


def test_english_bge_gets_its_query_prompt_though_no_file_carries_it(folder):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"_name_or_path": "/root/BAAI_bge-small-en/"})
    model = find_sentence_model(str(folder))
    assert model.query_prompt == "Represent this sentence for searching relevant passages: "
    assert model.passage_prompt == ""


@pytest.mark.parametrize(
    ("origin", "trained"), [("BAAI/bge-small-en-v1.5", "cls"), ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "lasttoken")]
)
def test_a_known_model_without_its_pooling_is_refused(folder, origin, trained):
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"_name_or_path": origin})
    with pytest.raises(ConfigurationError, match=f"mean would be assumed.*pool by {trained}"):
        find_sentence_model(str(folder))


def test_an_unknown_model_without_its_pooling_is_read_as_sentence_transformers_reads_it(folder, caplog):
    (folder / "modules.json").unlink()
    assert find_sentence_model(str(folder)).pooling == "mean"
    assert "does not say how the model pools; taken for mean pooling" in caplog.text


def test_a_declared_pooling_stands_and_is_remarked_on_where_the_family_has_another(folder, caplog):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"_name_or_path": "sentence-transformers/all-MiniLM-L6-v2"})
    assert find_sentence_model(str(folder)).pooling == "cls"
    assert "pool by mean, but the files say cls" in caplog.text


def test_a_model_whose_parts_are_not_all_there_is_refused(folder):
    modules = json.loads((folder / "modules.json").read_text())
    write_json(
        folder / "modules.json", [*modules, {"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"}]
    )
    with pytest.raises(ModelUnavailable, match="sentence-transformers cannot load"):
        find_sentence_model(str(folder))


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"expected config\.json and model\.safetensors"):
        find_sentence_model(str(folder))


def test_a_cross_encoder_must_have_one_score(tiny_cross_encoder, tmp_path):
    assert find_cross_encoder(str(tiny_cross_encoder)).max_tokens == 512
    folder = shutil.copytree(tiny_cross_encoder, tmp_path / "three")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"id2label": {"0": "a", "1": "b", "2": "c"}})
    with pytest.raises(ConfigurationError, match="one score, got 3 outputs"):
        find_cross_encoder(str(folder))
