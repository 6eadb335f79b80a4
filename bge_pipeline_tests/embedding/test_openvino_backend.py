import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from bge_pipeline.embedding import calibration, conversion, openvino_models
from bge_pipeline.embedding.calibration import vector_guard
from bge_pipeline.embedding.conversion import MODEL_FILE
from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.openvino_models import OpenVinoModels
from bge_pipeline.embedding.torch_backend import TorchBackend, load_network
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import TEXTS

ov = pytest.importorskip("openvino")

PADDED_FROM = 1_025
"""Tokens in its longest text with which a model is no longer run over packed rows."""
LEAST_COSINE = {"fp32": 0.999999, "auto": 0.999, "int8": 0.97}


@pytest.fixture(autouse=True)
def _small_calibration(monkeypatch):
    monkeypatch.setattr(calibration, "_TEXTS", 48)


@pytest.fixture
def load(settings):
    encoders = []

    def make(**options):
        encoders.append(load_encoder(settings.model_copy(update={"embedding_backend": "openvino"} | options)))
        return encoders[-1]

    yield make
    for encoder in encoders:
        encoder.close()


def vectors_of(encoder, texts):
    return encoder.encode(encoder.tokenize(texts))


@pytest.mark.parametrize("precision", ["fp32", "auto", "int8"])
def test_vectors_agree_with_sentence_transformers(load, reference, precision):
    if precision == "int8":
        pytest.importorskip("nncf")
    encoder = load(embedding_precision=precision)
    vectors = vectors_of(encoder, TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = (vectors * reference).sum(axis=1)
    assert cosines[[bool(text) for text in TEXTS]].min() > LEAST_COSINE[precision]
    if precision == "fp32":
        np.testing.assert_allclose(vectors, reference, atol=1e-5)
    if precision == "int8":
        assert encoder.space.precision == "int8"
        assert encoder.backend.quantization.is_enough


@pytest.mark.parametrize(
    ("family", "layout", "pooling"),
    [
        ("bert", "packed", "cls"),
        ("bert", "packed", "mean"),
        ("bert", "packed", "max"),
        ("bert", "packed", "lasttoken"),
        ("xlm-roberta", "packed", "mean"),
        ("bert", "padded", "mean"),
        ("gte-qwen2", "padded", "lasttoken"),
    ],
)
def test_every_family_and_pooling_agrees_with_pytorch_packed_and_padded(tiny_models, home, family, pooling, layout):
    files = tiny_models[family]
    if layout == "padded":
        files = replace(files, max_tokens=PADDED_FROM)
    key = f"{family}-{layout}"
    models = OpenVinoModels(home / "models", key, files, pooling)
    tokenizer, ours = models.load("fp32", vector_guard(None))
    inputs = {port.any_name for port in ov.Core().read_model(home / "models" / f"{key}-fp32" / MODEL_FILE).inputs}
    assert ("segments" in inputs) == (layout == "packed")
    tokens, _ = tokenizer.texts([text[:400] for text in TEXTS])
    theirs = TorchBackend(load_network(files, pooling), device="cpu", precision="fp32", pad_id=0)
    for max_texts in (1, 64):
        expected = theirs.run(tokens, max_texts=max_texts)
        np.testing.assert_allclose(ours.run(tokens, max_texts=max_texts), expected, atol=1e-5)
    ours.close()


def test_auto_chooses_bf16_where_the_processor_has_it_and_openvino_on_a_cpu(settings):
    encoder = load_encoder(settings)
    has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert encoder.space.precision == ("bf16" if has_bf16 else "fp32")
    assert type(encoder.backend).__name__ == "OpenVinoBackend"
    encoder.close()


def test_the_order_of_the_texts_is_kept(load):
    encoder = load(embedding_precision="fp32")
    texts = [f"{'word ' * (number * 37 % 100)} number {number}" for number in range(80)]
    together = vectors_of(encoder, texts)
    for number in (0, 17, 79):
        np.testing.assert_allclose(together[number], vectors_of(encoder, [texts[number]])[0], atol=1e-4)


def test_calls_from_several_threads_do_not_disturb_each_other(load):
    encoder = load(embedding_precision="fp32")
    batches = [[f"thread {thread}, text {number} " * (number % 9 + 1) for number in range(12)] for thread in range(4)]
    alone = [vectors_of(encoder, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: vectors_of(encoder, batch), batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_closed_encoder_says_so(load):
    encoder = load(embedding_precision="fp32")
    encoder.close()
    with pytest.raises(EncodingError, match="shut down"):
        vectors_of(encoder, ["text"])


def test_a_second_start_converts_nothing_and_imports_neither_torch_nor_transformers(load, home):
    load(embedding_precision="fp32")
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
    def killed(_files, _pooling, target):
        (target / MODEL_FILE).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(openvino_models, "convert_in_child", killed)
    models = OpenVinoModels(tmp_path, "key", bundled.files, "mean")
    with pytest.raises(KeyboardInterrupt):
        models.load("fp32", vector_guard(None))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_child_that_fails_is_reported_with_its_reason(tmp_path):
    job = {"act": "quantize", "source": str(tmp_path), "target": str(tmp_path)}
    with pytest.raises(ModelUnavailable, match="cannot quantize the model for OpenVINO: FileNotFoundError"):
        conversion._run_child("some model", job)


def test_a_child_that_was_stopped_for_want_of_memory_is_want_of_memory(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(conversion.subprocess, "run", lambda *_args, **_options: killed)
    with pytest.raises(MemoryError, match="no memory to convert some model"):
        conversion._run_child("some model", {"act": "convert"})


def test_a_precision_that_the_processor_lacks_is_refused(load, monkeypatch):
    monkeypatch.setattr("bge_pipeline.embedding.openvino_backend._capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(ConfigurationError, match="EMBEDDING_PRECISION=bf16: this processor has no instructions for it"):
        load(embedding_precision="bf16")


class TestBrokenQuantisation:
    @pytest.fixture
    def models(self, load, home, bundled, tmp_path, monkeypatch):
        """Where int8 models come out with their vectors' dimensions scrambled."""
        load(embedding_precision="fp32")
        key = bundled.space("fp32").fingerprint
        (tmp_path / f"{key}-fp32").symlink_to(home / "models" / f"{key}-fp32")

        def scramble(_name, source, _tokens, target):
            model = ov.Core().read_model(source / MODEL_FILE)
            noise = np.random.default_rng(0).standard_normal((1, 384)).astype(np.float32)
            scrambled = ov.opset13.multiply(model.output(0).get_node().input_value(0), noise)
            ov.save_model(ov.Model([scrambled], model.get_parameters()), target / MODEL_FILE, compress_to_fp16=False)

        monkeypatch.setattr(openvino_models, "quantize_in_child", scramble)
        return OpenVinoModels(tmp_path, key, bundled.files, bundled.pooling)

    def test_is_rejected_aloud_and_another_precision_is_used(self, models, caplog, reference):
        tokenizer, backend = models.load("int8", vector_guard(None))
        assert backend.precision in ("bf16", "fp32")
        assert not backend.quantization.is_enough
        assert "int8 of sentence-transformers/all-MiniLM-L6-v2 was rejected" in caplog.text
        assert "mean cosine" in caplog.text
        vectors = backend.run(tokenizer.texts(TEXTS)[0], max_texts=8)
        assert (vectors * reference).sum(axis=1).min() > LEAST_COSINE["auto"]
        backend.close()

    def test_is_not_tried_again_at_the_next_start(self, models, monkeypatch, bundled, tmp_path):
        models.load("int8", vector_guard(None))[1].close()
        monkeypatch.setattr(openvino_models, "quantize_in_child", pytest.fail)
        _, backend = models.load("int8", vector_guard(None))
        assert backend.precision != "int8"
        backend.close()
        kept = tmp_path / f"{bundled.space('fp32').fingerprint}-int8"
        assert [path.name for path in kept.iterdir()] == ["about.json"]
        assert json.loads((kept / "about.json").read_text())["agreement"]["figures"]["mean_cosine"] < 0.99


def test_int8_is_calibrated_on_the_callers_texts(settings, bundled, tmp_path, monkeypatch, load, home):
    load(embedding_precision="fp32")
    key = bundled.space("fp32").fingerprint
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{key}-fp32").symlink_to(home / "models" / f"{key}-fp32")
    seen = []

    def record(_name, _source, tokens, _target):
        seen.append(tokens)
        raise ModelUnavailable("seen enough")

    monkeypatch.setattr(openvino_models, "quantize_in_child", record)
    pytest.importorskip("nncf")
    options = {"embedding_precision": "int8", "bge_pipeline_home": tmp_path}
    with pytest.raises(ModelUnavailable, match="seen enough"):
        load_encoder(settings.model_copy(update=options), lambda: [f"user text {number}" for number in range(100)])
    assert len(seen[0]) == 16
    assert set(seen[0].lengths.tolist()) <= {5, 6}


def test_without_openvino_the_model_runs_on_torch(settings, monkeypatch):
    monkeypatch.setattr("bge_pipeline.embedding.loading.find_spec", lambda _name: None)
    encoder = load_encoder(settings)
    assert type(encoder.backend).__name__ == "TorchBackend"
    with pytest.raises(ModelUnavailable) as caught:
        load_encoder(settings.model_copy(update={"embedding_backend": "openvino"}))
    assert caught.value.next_step == "pip install 'bge-pipeline[openvino]'"


def test_openvino_on_a_gpu_is_refused(settings):
    with pytest.raises(ConfigurationError, match="EMBEDDING_BACKEND=openvino runs on EMBEDDING_DEVICE=cpu, got cuda:0"):
        load_encoder(settings.model_copy(update={"embedding_backend": "openvino", "embedding_device": "cuda"}))
