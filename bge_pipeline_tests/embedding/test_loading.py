import pytest

from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.processor import is_quicker_in_bf16
from bge_pipeline.errors import ConfigurationError, ModelUnavailable


def test_auto_chooses_bf16_where_the_processor_is_quicker_in_it_and_openvino_on_a_cpu(settings):
    pytest.importorskip("openvino")
    encoder = load_encoder(settings)
    assert encoder.space.precision == ("bf16" if is_quicker_in_bf16() else "fp32")
    assert type(encoder.backend).__name__ == "OpenVinoBackend"
    encoder.close()


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
