"""What the settings change in a model, and what that does to its embedding space."""

import json
import re

import numpy as np
import pytest

from bge_pipeline.embedding.configured import configured_model, warn_of_missing_prompts
from bge_pipeline.embedding.loading import configured_space, is_at_hand, load_encoder, load_encoder_of
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.embedding.conftest import write_json


@pytest.fixture
def tiny(folder, tmp_path):
    """Settings that name the tiny model of 32 dimensions, in fp32 on PyTorch."""

    def make(**options):
        chosen = {
            "embedding_model": str(folder),
            "embedding_device": "cpu",
            "embedding_backend": "torch",
            "embedding_precision": "fp32",
            "bge_pipeline_home": tmp_path / "home",
        }
        return load_settings(**chosen | {"embedding_dimensions": 32} | options)

    return make


def test_prompts_that_are_set_take_the_place_of_the_models_own(tiny, folder):
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "q: ", "document": "d: "}})
    own = configured_model(tiny())
    assert (own.query_prompt, own.passage_prompt) == ("q: ", "d: ")
    changed = configured_model(tiny(embedding_query_prompt="find: "))
    assert (changed.query_prompt, changed.passage_prompt) == ("find: ", "d: ")


def test_prompts_are_part_of_the_space_and_of_the_vectors(tiny):
    plain, prompted = load_encoder(tiny()), load_encoder(tiny(embedding_passage_prompt="passage: "))
    assert not prompted.space.is_same_as(plain.space)
    np.testing.assert_allclose(
        prompted.encode(prompted.tokenize(["cats"])), plain.encode(plain.tokenize(["passage: cats"])), atol=1e-6
    )


def test_a_column_with_prompts_finds_its_model_again_whatever_is_set_now(tiny):
    settings = tiny(embedding_passage_prompt="passage: ", embedding_dimensions=8, embedding_truncate=True)
    filled = load_encoder(settings)
    assert is_at_hand(filled.space, settings)
    again = load_encoder_of(filled.space, tiny(embedding_passage_prompt="other: ", trust_remote_code="0" * 40))
    assert again.space.is_same_as(filled.space)
    texts = ["cats", "dogs and more"]
    # The other runs in the best precision here, which may be bf16.
    cosines = (again.encode(again.tokenize(texts)) * filled.encode(filled.tokenize(texts))).sum(axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("e5-small-v2", r"'query: ' before a query and 'passage: ' before a passage.*EMBEDDING_PASSAGE_PROMPT"),
        ("nomic-embed-text-v1.5", "'search_query: '"),
        ("mxbai-embed-large-v1", "Represent this sentence"),
        ("multilingual-e5-large-instruct", "Instruct: "),
        ("Qwen3-Embedding-0.6B", "Instruct: "),
    ],
)
def test_a_model_that_was_trained_with_prompts_and_has_none_is_warned_of(folder, caplog, name, expected):
    renamed = folder.rename(folder.with_name(name))
    warn_of_missing_prompts(find_sentence_model(str(renamed)))
    (record,) = [record for record in caplog.records if "trained with" in record.message]
    assert re.search(expected, record.message)


def test_whoever_has_prompts_or_another_name_is_not_warned(folder, caplog, tiny):
    warn_of_missing_prompts(find_sentence_model(str(folder)))
    renamed = str(folder.rename(folder.with_name("e5-small")))
    prompts = {"embedding_query_prompt": "query: ", "embedding_passage_prompt": "passage: "}
    warn_of_missing_prompts(configured_model(tiny(embedding_model=renamed, **prompts)))
    assert "trained with" not in caplog.text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"matryoshka_dimensions": [8, 16]}),
        ("config_sentence_transformers.json", {"truncate_dim": 16}),
        ("README.md", '    "matryoshka_dims": [\n        16,\n        8\n    ],\n'),
    ],
)
def test_dimensions_that_the_files_name_may_be_asked_for(tiny, folder, file, content):
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() and path.suffix == ".json" else {}
    path.write_text(content if isinstance(content, str) else json.dumps(known | content))
    assert configured_space(tiny(embedding_dimensions=16)).dimensions == 16
    with pytest.raises(ConfigurationError, match="makes vectors of 32 dimensions") as caught:
        configured_model(tiny(embedding_dimensions=9))
    assert "16" in caught.value.next_step
    assert "EMBEDDING_TRUNCATE=1" in caught.value.next_step


def test_other_dimensions_are_cut_only_where_somebody_insists(tiny):
    with pytest.raises(ConfigurationError, match=r"EMBEDDING_DIMENSIONS=16, but .* makes vectors of 32") as caught:
        configured_model(tiny(embedding_dimensions=16))
    assert "set EMBEDDING_DIMENSIONS=32" in caught.value.next_step
    assert configured_model(tiny(embedding_dimensions=16, embedding_truncate=True)).dimensions == 16
    with pytest.raises(ConfigurationError, match="EMBEDDING_DIMENSIONS=64") as caught:
        configured_model(tiny(embedding_dimensions=64, embedding_truncate=True))
    assert "TRUNCATE" not in caught.value.next_step


def test_the_default_cuts_nothing_though_the_files_name_it(folder, tiny):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"matryoshka_dimensions": [16]})
    asked = tiny(embedding_dimensions=16)
    forgotten = asked.model_copy()
    forgotten.__pydantic_fields_set__.discard("embedding_dimensions")
    assert configured_model(tiny(embedding_dimensions=16)).dimensions == 16
    with pytest.raises(ConfigurationError, match="makes vectors of 32"):
        configured_model(forgotten)


def test_the_space_of_a_model_that_worked_before_has_kept_its_fingerprint(bundled):
    assert bundled.space("fp32").fingerprint == "380181be"
