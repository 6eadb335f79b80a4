import pytest

from bge_pipeline.embedding.declarations import declared_pooling, declared_reading
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline_tests.embedding.conftest import write_json


def test_the_newer_way_to_name_a_pooling_is_understood(folder):
    write_json(folder / "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": "lasttoken"})
    assert find_sentence_model(str(folder)).pooling == "lasttoken"


def test_prompts_come_from_the_models_own_file(folder):
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": None},
    )
    model = find_sentence_model(str(folder))
    assert (model.query_prompt, model.passage_prompt) == ("query: ", "passage: ")


def test_a_default_prompt_is_put_before_passages_too(folder):
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {"sts": "sts: "}, "default_prompt_name": "sts"}
    )
    model = find_sentence_model(str(folder))
    assert (model.query_prompt, model.passage_prompt) == ("sts: ", "sts: ")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean"),
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ],
)
def test_both_generations_of_the_pooling_file_are_read(config, pooling):
    assert declared_pooling(config) == pooling


def test_the_length_is_the_models_own_else_the_tokenizers_else_what_there_are_positions_for(tmp_path):
    assert declared_reading(tmp_path, tmp_path, 512) == (512, False)
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 1_000_000})
    assert declared_reading(tmp_path, tmp_path, 512) == (512, False)
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 384})
    assert declared_reading(tmp_path, tmp_path, 512) == (384, False)
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True})
    assert declared_reading(tmp_path, tmp_path / "0_Transformer", 512) == (128, True)
