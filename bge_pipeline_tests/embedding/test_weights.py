import shutil
from dataclasses import replace

import pytest

from bge_pipeline.embedding.weights import load_transformer
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline_tests.embedding.conftest import with_own_code


def test_other_code_in_a_models_folder_is_not_run_and_warned_of(tiny_models, tmp_path, caplog):
    load_transformer(with_own_code(tiny_models["bert"], tmp_path / "copy", "their_code.TheirBert"), "embed texts")
    assert "brings its own code (their_code.TheirBert), which is not run" in caplog.text


@pytest.mark.parametrize("task", ["embed texts", "score pairs"])
def test_weights_that_leave_part_of_the_network_random_are_refused(tiny_models, tiny_cross_encoder, tmp_path, task):
    from safetensors.numpy import load_file, save_file

    lost = "encoder.layer.0.output.dense.weight" if task == "embed texts" else "classifier.weight"
    folder = shutil.copytree(
        tiny_models["bert"].folder if task == "embed texts" else tiny_cross_encoder, tmp_path / "copy"
    )
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=rf"lack 1 of the tensors of Bert\w+, {lost} for one"):
        load_transformer(replace(tiny_models["bert"], folder=folder), task)


def test_a_sentence_model_needs_no_pooler(tiny_models, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_models["bert"].folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load_transformer(replace(tiny_models["bert"], folder=folder), "embed texts")
