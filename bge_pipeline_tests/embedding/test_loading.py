import pytest

from bge_pipeline.embedding.loading import load_encoder, load_encoder_named, load_encoder_of
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.processor import is_quicker_in_bf16
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import write_json


def test_auto_chooses_bf16_where_the_processor_is_quicker_in_it_and_openvino_on_a_cpu(settings):
    pytest.importorskip("openvino")
    encoder = load_encoder(settings)
    assert encoder.space.precision == ("bf16" if is_quicker_in_bf16() else "fp32")
    assert type(encoder.backend).__name__ == "OpenVinoBackend"
    encoder.close()


@pytest.mark.thorough
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


def test_the_backend_that_is_insisted_on_is_the_configured_models_and_no_other_ones(settings, folder):
    write_json(
        folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_weightedmean_tokens": True}
    )
    insisting = settings.model_copy(update={"embedding_backend": "openvino"})
    configured = insisting.model_copy(update={"embedding_model": str(folder), "embedding_dimensions": 32})
    with pytest.raises(ConfigurationError, match="EMBEDDING_BACKEND=openvino cannot run"):
        load_encoder(configured)
    space = find_sentence_model(str(folder)).space("fp32")
    for encoder in (load_encoder_of(space, insisting), load_encoder_named(str(folder), 32, insisting)):
        assert encoder.encode(encoder.tokenize(["a text"])).shape == (1, 32)
