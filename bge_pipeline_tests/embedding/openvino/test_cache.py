import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from bge_pipeline.embedding.calibration import vector_guard
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.openvino import cache
from bge_pipeline.embedding.openvino.cache import ConvertedModels
from bge_pipeline.embedding.openvino.conversion import MODEL_FILE, TOKENIZER_FILE
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline_tests.embedding.conftest import TEXTS
from bge_pipeline_tests.embedding.openvino.conftest import folder_of

ov = pytest.importorskip("openvino")

LEAST_COSINE = 0.999


def test_a_second_start_converts_and_proves_nothing_and_imports_neither_torch_nor_transformers(load, home):
    load()
    script = (
        "import sys; from bge_pipeline.embedding.service import EmbeddingsService;"
        "texts = ['word ' * number for number in range(64)];"
        "assert EmbeddingsService.init_from_env().encode_texts(texts, batch_size=4).shape == (64, 384);"
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'nncf', 'sklearn'} & set(sys.modules)))"
    )
    environment = os.environ | {
        "EMBEDDING_MODEL": "bundled",
        "EMBEDDING_DEVICE": "cpu",
        "EMBEDDING_BACKEND": "openvino",
        "BGE_PIPELINE_HOME": str(home),
    }
    # Many batches at once in a fresh process, too: where OpenVINO's bindings used to wait for each other for ever.
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_conversion_that_was_killed_leaves_no_half_model(bundled, tmp_path, monkeypatch):
    def killed(_files, _task, _layout, target):
        (target / MODEL_FILE).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "convert_in_child", killed)
    models = ConvertedModels(tmp_path, "key", bundled.files, bundled.task)
    with pytest.raises(KeyboardInterrupt):
        models.load("fp32", vector_guard(None))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.thorough
def test_where_nothing_can_be_kept_the_model_runs_on_pytorch(settings, tmp_path, caplog):
    (tmp_path / "models").write_text("a file, where a folder would be made")
    elsewhere = settings.model_copy(update={"bge_pipeline_home": tmp_path, "embedding_precision": "fp32"})
    encoder = load_encoder(elsewhere)
    assert encoder.road.library == "PyTorch"
    assert "cannot be kept converted for OpenVINO" in caplog.text
    with pytest.raises(ModelUnavailable, match="cannot be kept converted") as refused:
        load_encoder(elsewhere.model_copy(update={"embedding_backend": "openvino"}))
    assert "BGE_PIPELINE_HOME" in refused.value.next_step


class TestBrokenQuantisation:
    @pytest.fixture
    def models(self, load, home, bundled, tmp_path, monkeypatch):
        """Where int8 models come out with their vectors' dimensions scrambled."""
        load(embedding_precision="fp32")
        key = bundled.space("fp32").fingerprint
        folder_of(tmp_path, key, "fp32").symlink_to(folder_of(home / "models", key, "fp32"))

        def scramble(_name, source, _layout, _tokens, target):
            model = ov.Core().read_model(source / MODEL_FILE)
            noise = np.random.default_rng(0).standard_normal((1, 384)).astype(np.float32)
            scrambled = ov.opset13.multiply(model.output(0).get_node().input_value(0), noise)
            ov.save_model(ov.Model([scrambled], model.get_parameters()), target / MODEL_FILE, compress_to_fp16=False)

        monkeypatch.setattr(cache, "quantize_in_child", scramble)
        return ConvertedModels(tmp_path, key, bundled.files, bundled.task)

    def test_is_rejected_aloud_and_another_precision_is_used(self, models, caplog, reference):
        tokenizer, backend = models.load("int8", vector_guard(None))
        assert backend.precision in ("bf16", "fp32")
        assert not backend.quantization.is_enough
        assert "int8 of sentence-transformers/all-MiniLM-L6-v2 was rejected" in caplog.text
        assert "mean cosine" in caplog.text
        vectors = backend.run(tokenizer.texts(TEXTS)[0], max_texts=8)
        assert (vectors * reference).sum(axis=1).min() > LEAST_COSINE
        backend.close()

    def test_is_not_tried_again_at_the_next_start(self, models, monkeypatch, bundled, tmp_path):
        models.load("int8", vector_guard(None))[1].close()
        monkeypatch.setattr(cache, "quantize_in_child", pytest.fail)
        _, backend = models.load("int8", vector_guard(None))
        assert backend.precision != "int8"
        backend.close()
        kept = folder_of(tmp_path, bundled.space("fp32").fingerprint, "int8")
        assert [path.name for path in kept.iterdir()] == ["about.json"]
        assert json.loads((kept / "about.json").read_text())["agreement"]["figures"]["mean_cosine"] < 0.99


def test_int8_is_calibrated_on_the_callers_texts(settings, bundled, tmp_path, monkeypatch, load, home):
    load(embedding_precision="fp32")
    key = bundled.space("fp32").fingerprint
    (tmp_path / "models").mkdir()
    folder_of(tmp_path / "models", key, "fp32").symlink_to(folder_of(home / "models", key, "fp32"))
    seen = []

    def record(_name, _source, _layout, tokens, _target):
        seen.append(tokens)
        raise ModelUnavailable("seen enough")

    monkeypatch.setattr(cache, "quantize_in_child", record)
    pytest.importorskip("nncf")
    options = {"embedding_precision": "int8", "bge_pipeline_home": tmp_path}
    with pytest.raises(ModelUnavailable, match="seen enough"):
        load_encoder(settings.model_copy(update=options), lambda: [f"user text {number}" for number in range(100)])
    assert len(seen[0]) == 16
    assert set(seen[0].lengths.tolist()) <= {5, 6}


@pytest.fixture
def made(monkeypatch):
    """What was converted, in place of conversions: name of the layout, by folder."""
    layouts = {}

    def convert(_files, _task, layout, target):
        layouts[target.parent] = layout
        (target / MODEL_FILE).write_text("")
        (target / TOKENIZER_FILE).write_text("")

    monkeypatch.setattr(cache, "convert_in_child", convert)
    monkeypatch.setattr(cache, "Tokenizer", lambda _files, _definition: type("Tokenizer", (), {"pad_id": 0}))
    monkeypatch.setattr(cache, "OpenVinoBackend", lambda _model, layout, _task, **_options: Loaded(layout))
    return layouts


class Loaded:
    def __init__(self, layout):
        self.layout = layout


def test_a_network_is_run_with_the_layout_that_is_kept_with_it(tiny_models, bundled, tmp_path, made):
    models = ConvertedModels(tmp_path, "key", tiny_models["bert"], bundled.task)
    assert models.load("fp32", vector_guard(None))[1].layout.name == "packed rows"
    about = folder_of(tmp_path, "key", "fp32") / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"layout": Padded.name}))
    assert models.load("fp32", vector_guard(None))[1].layout.name == "padded"


def test_another_recipe_makes_another_network_and_leaves_the_first_to_those_who_use_it(
    tiny_models, bundled, tmp_path, made, monkeypatch
):
    ConvertedModels(tmp_path, "key", tiny_models["bert"], bundled.task).load("fp32", vector_guard(None))
    (first,) = tmp_path.glob("key-*")
    monkeypatch.setattr(cache, "recipe", lambda _kind: "0therone")
    ConvertedModels(tmp_path, "key", tiny_models["bert"], bundled.task).load("fp32", vector_guard(None))
    assert {path.name for path in tmp_path.glob("key-*")} == {first.name, "key-fp32-0therone"}


def test_networks_by_recipes_of_long_ago_are_removed_when_a_new_one_is_made(tiny_models, bundled, tmp_path, made):
    old, of_another_model, of_another_kind = (tmp_path / name for name in ("key-fp32", "keys-fp32-1", "key-int8-1"))
    for folder in (old, of_another_model, of_another_kind):
        folder.mkdir()
        os.utime(folder, (0, time.time() - 31 * 86_400))
    ConvertedModels(tmp_path, "key", tiny_models["bert"], bundled.task).load("fp32", vector_guard(None))
    kept = {folder_of(tmp_path, "key", "fp32"), of_another_model, of_another_kind, tmp_path / ".lock"}
    assert set(tmp_path.iterdir()) == kept
