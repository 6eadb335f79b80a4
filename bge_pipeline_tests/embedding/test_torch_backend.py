import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.tokenizer import RaggedTokens, Tokenizer
from bge_pipeline.embedding.torch_backend import TorchBackend, best_precision, check_device, load_network
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import TEXTS, with_own_code

LEAST_COSINE = {"fp32": 0.999999, "bf16": 0.999, "fp16": 0.9999}


def attend_text_by_text(query, key, value, boundaries, _longest, scale):
    """Attention over packed texts as CUDA's kernel computes it, in plain PyTorch."""
    output = torch.empty_like(query)
    for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        here = (states[start:end].transpose(0, 1) for states in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(*here, scale=scale)
        output[start:end] = attended.transpose(0, 1)
    return output


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return Tokenizer(bundled.files)


@pytest.fixture
def backend(bundled, tokenizer):
    def make(pooling=bundled.pooling, files=bundled.files, **options):
        options = {"device": "cpu", "precision": "fp32", "pad_id": tokenizer.pad_id} | options
        return TorchBackend(load_network(files, pooling), **options)

    return make


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.texts(TEXTS)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("packed_attention", [None, attend_text_by_text], ids=["padded", "packed"])
def test_vectors_agree_with_sentence_transformers(backend, tokens, reference, precision, packed_attention):
    vectors = backend(precision=precision, packed_attention=packed_attention).run(tokens, max_texts=3)
    assert vectors.dtype == np.float32
    assert (vectors * reference).sum(axis=1).min() > LEAST_COSINE[precision]
    if precision == "fp32":
        np.testing.assert_allclose(vectors, reference, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_every_pooling_agrees_with_sentence_transformers_padded_and_packed(
    backend, tiny_sentence_model, tokenizer, pooling
):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(tiny_sentence_model), max_seq_length=256)
    theirs = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode=pooling), Normalize()], device="cpu")
    files = find_sentence_model(str(tiny_sentence_model)).files
    expected = theirs.encode(TEXTS)
    for packed_attention in (None, attend_text_by_text):
        ours = backend(pooling, files, packed_attention=packed_attention)
        np.testing.assert_allclose(ours.run(tokenizer.texts(TEXTS)[0], max_texts=3), expected, atol=1e-5)


def test_packed_texts_of_the_roberta_family_count_positions_as_it_does(backend, tokens, tiny_models):
    padded, packed = (
        backend("mean", tiny_models["xlm-roberta"], packed_attention=attention).run(tokens, max_texts=4)
        for attention in (None, attend_text_by_text)
    )
    np.testing.assert_allclose(packed, padded, atol=1e-5)


def test_in_gte_qwen2_a_token_sees_those_after_it_and_in_other_decoders_not(backend, tokenizer, tiny_models):
    texts = ["one two three", "one two four", "longer than the others by far"]
    for files, sees_later in ((tiny_models["qwen2"], False), (tiny_models["gte-qwen2"], True)):
        first_token = backend("cls", files)
        together = first_token.run(tokenizer.texts(texts)[0], max_texts=3)
        assert np.allclose(together[0], together[1], atol=1e-6) != sees_later
        alone = [first_token.run(tokenizer.texts([text])[0], max_texts=1)[0] for text in texts]
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_other_code_in_a_models_folder_is_not_run_and_warned_of(tiny_models, tmp_path, caplog):
    load_network(with_own_code(tiny_models["bert"], tmp_path / "copy", "their_code.TheirBert"), "cls")
    assert "brings its own code (their_code.TheirBert), which is not run" in caplog.text


@pytest.mark.parametrize("pooling", ["mean", None], ids=["sentence model", "cross-encoder"])
def test_weights_that_leave_part_of_the_network_random_are_refused(tiny_models, tiny_cross_encoder, tmp_path, pooling):
    from safetensors.numpy import load_file, save_file

    lost = "encoder.layer.0.output.dense.weight" if pooling else "classifier.weight"
    folder = shutil.copytree(tiny_models["bert"].folder if pooling else tiny_cross_encoder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=rf"lack 1 of the tensors of Bert\w+, {lost} for one"):
        load_network(replace(tiny_models["bert"], folder=folder), pooling)


def test_a_sentence_model_needs_no_pooler(tiny_models, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_models["bert"].folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load_network(replace(tiny_models["bert"], folder=folder), "mean")


def fail_above(backend: TorchBackend, tokens_that_fit: int, error: Exception) -> list[int]:
    """Make the backend's network run out of memory; returns the sizes that it was asked for."""
    network, asked = backend._network, []

    def limited(input_ids, attention_mask):
        asked.append(input_ids.numel())
        if input_ids.numel() > tokens_that_fit:
            raise error
        return network(input_ids, attention_mask)

    backend._network = limited
    return asked


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_halves_the_budget_remembers_it_and_goes_on(
    backend, tokens, tiny_sentence_model, error, caplog
):
    ours = backend("cls", find_sentence_model(str(tiny_sentence_model)).files, token_budget=4_096)
    expected = ours.run(tokens, max_texts=64)
    asked = fail_above(ours, 700, error)
    np.testing.assert_allclose(ours.run(tokens, max_texts=64), expected, atol=1e-5)
    assert ours.token_budget <= 700
    assert "out of memory on cpu" in caplog.text
    asked.clear()
    ours.run(tokens, max_texts=64)
    assert max(asked) <= 700


def test_memory_for_not_even_one_text_is_an_error_that_says_so(backend, tokens):
    ours = backend()
    fail_above(ours, 1, MemoryError())
    with pytest.raises(EncodingError, match="out of memory on cpu with a single text of 256 tokens"):
        ours.run(tokens, max_texts=64)


def test_another_error_is_not_taken_for_want_of_memory(backend, tokens):
    ours = backend()
    fail_above(ours, 1, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        ours.run(tokens, max_texts=64)


def test_a_closed_backend_says_so(backend, tokens):
    ours = backend()
    ours.close()
    with pytest.raises(EncodingError, match="shut down"):
        ours.run(tokens, max_texts=64)


def test_a_cuda_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="EMBEDDING_DEVICE=cuda:99"):
        check_device("cuda:99")


@pytest.mark.parametrize(
    ("family", "has_bf16", "expected"),
    [("bert", True, "fp16"), ("xlm-roberta", True, "fp16"), ("qwen2", True, "bf16"), ("qwen2", False, "fp16")],
)
def test_on_cuda_a_family_that_may_leave_the_range_of_fp16_gets_bf16(monkeypatch, family, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert best_precision("cuda:0", family) == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnCuda:
    def test_fp16_agrees_with_sentence_transformers(self, backend, tokens, reference):
        vectors = backend(device="cuda:0", precision="fp16").run(tokens, max_texts=64)
        assert (vectors * reference).sum(axis=1).min() > LEAST_COSINE["fp16"]

    def test_shutdown_gives_the_memory_back(self, backend, tokens):
        before = torch.cuda.memory_reserved()
        ours = backend(device="cuda:0", precision="fp16")
        ours.run(tokens, max_texts=64)
        ours.close()
        assert torch.cuda.memory_reserved() <= before

    def test_real_want_of_memory_is_survived(self, backend):
        many = RaggedTokens(np.full(256 * 4_000, 1_000, np.int32), np.arange(4_001, dtype=np.int64) * 256)
        ours = backend(device="cuda:0", precision="fp16", token_budget=1_000_000)
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, free - (1 << 30)), dtype=torch.uint8, device="cuda")
        try:
            assert np.isfinite(ours.run(many, max_texts=4_000)).all()
        finally:
            del ballast
            ours.close()
