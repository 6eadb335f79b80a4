from dataclasses import replace

import pytest

from bge_pipeline.embedding.openvino.layouts import best_layout, layout_named
from bge_pipeline.embedding.tasks import EmbedTexts, ScorePairs


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        ("bert", "packed rows"),
        ("roberta", "packed rows"),
        ("xlm-roberta", "packed rows"),
        ("roberta-prelayernorm", "padded"),
        ("gte-qwen2", "padded"),
        ("electra", "padded"),
    ],
)
def test_texts_share_rows_in_families_that_allow_it(tiny_models, network, layout):
    assert best_layout(tiny_models[network], EmbedTexts("mean")) == layout


def test_long_texts_and_pairs_are_padded(tiny_models):
    assert best_layout(replace(tiny_models["bert"], max_tokens=1_024), EmbedTexts("mean")) == "packed rows"
    assert best_layout(replace(tiny_models["bert"], max_tokens=1_025), EmbedTexts("mean")) == "padded"
    assert best_layout(tiny_models["bert"], ScorePairs()) == "padded"


@pytest.mark.parametrize("name", ["padded", "packed rows"])
def test_a_layout_is_found_again_by_the_name_that_is_kept(name):
    assert layout_named(name, pad_id=0).name == name
