"""The graphs give the same states whichever layout they take, and take what that layout gives."""

import numpy as np
import pytest
import torch

from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.layouts.packed_rows import PackedRows
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.networks import EndToEndNetwork, PackedRowsNetwork, PaddedNetwork, ScoringNetwork
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.weights import load_transformer
from bge_pipeline_tests.embedding.conftest import attend_text_by_text

SHORT, LONG = "one two three", "a text that is longer than the others by far"

WAYS = {
    "padded": (Padded(0), PaddedNetwork),
    "packed rows": (PackedRows(0), PackedRowsNetwork),
    "end to end": (EndToEnd(), lambda transformer: EndToEndNetwork(transformer, attend_text_by_text)),
}


def states_of(files, texts, layout, network_over):
    """The states of each text's tokens, by text."""
    network = network_over(load_transformer(files, "embed texts"))
    tokens, _ = Tokenizer(files).texts(texts)
    (batch,) = layout.plan(tokens.lengths, token_budget=1_000, max_texts=64)
    arrays = layout.arrays(tokens, batch)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if isinstance(array, np.ndarray)}
    assert tensors.keys() == set(network.inputs)
    with torch.inference_mode():
        states = network(**arrays | tensors)
    assert states.shape[:2] == batch.shape
    flat, found = states.reshape(-1, states.shape[-1]).numpy(), {}
    for row, start, length in zip(batch.rows, batch.starts, batch.lengths, strict=True):
        found[texts[row]] = flat[start : start + length]
    return found


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("layout", "network"), WAYS.values(), ids=WAYS)
def test_a_text_is_read_as_if_it_were_alone(tiny_models, family, layout, network):
    alone = states_of(tiny_models[family], [SHORT], *WAYS["padded"])[SHORT]
    beside = states_of(tiny_models[family], [LONG, SHORT, "other"], layout, network)[SHORT]
    np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_a_pair_is_scored_by_its_types_and_not_by_its_padding(tiny_cross_encoder, bundled):
    from dataclasses import replace

    files = replace(bundled.files, folder=tiny_cross_encoder)
    network = ScoringNetwork(load_transformer(files, "score pairs"))
    ids, mask, types = torch.tensor([[101, 2028, 102, 2048, 102]]), torch.ones(1, 5), torch.tensor([[0, 0, 0, 1, 1]])
    more = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    padded = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in more.items()}
    with torch.inference_mode():
        score, same = network(**more), network(**padded)
        other = network(**more | {"token_type_ids": torch.zeros_like(types)})
    assert score.shape == (1, 1)
    np.testing.assert_allclose(same, score, atol=1e-5)
    assert not np.allclose(other, score, atol=1e-4)
