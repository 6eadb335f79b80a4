import numpy as np
import pytest
import torch

from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.tasks import EmbedTexts
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.embedding.torch_backend import TorchBackend, load_torch_backend
from bge_pipeline.errors import EncodingError
from bge_pipeline_tests.embedding.conftest import TEXTS, attend_text_by_text

LEAST_COSINE = {"fp32": 0.999999, "bf16": 0.999, "fp16": 0.9999}


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return Tokenizer(bundled.files)


@pytest.fixture
def backend(bundled, tokenizer):
    def make(pooling=bundled.pooling, files=bundled.files, **options):
        options = {"device": "cpu", "precision": "fp32", "pad_id": tokenizer.pad_id} | options
        return load_torch_backend(files, EmbedTexts(pooling), **options)

    return make


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.texts(TEXTS)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("attend", [None, attend_text_by_text], ids=["padded", "end to end"])
def test_vectors_agree_with_sentence_transformers(backend, tokens, reference, precision, attend):
    vectors = backend(precision=precision, attend=attend).run(tokens, max_texts=3)
    assert vectors.dtype == np.float32
    assert (vectors * reference).sum(axis=1).min() > LEAST_COSINE[precision]
    if precision == "fp32":
        np.testing.assert_allclose(vectors, reference, atol=1e-6)


def fail_above(backend: TorchBackend, tokens_that_fit: int, error: Exception) -> list[int]:
    """Make the backend's network run out of memory; returns the sizes that it was asked for."""
    network, asked = backend._network, []

    def limited(input_ids, **others):
        asked.append(input_ids.numel())
        if input_ids.numel() > tokens_that_fit:
            raise error
        return network(input_ids=input_ids, **others)

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
@pytest.mark.parametrize("attend", [None, attend_text_by_text], ids=["padded", "end to end"])
def test_running_out_of_memory_halves_the_budget_remembers_it_and_goes_on(
    backend, tokens, tiny_sentence_model, error, attend, caplog
):
    ours = backend("cls", find_sentence_model(str(tiny_sentence_model)).files, token_budget=4_096, attend=attend)
    expected = ours.run(tokens, max_texts=64)
    asked = fail_above(ours, 300, error)
    np.testing.assert_allclose(ours.run(tokens, max_texts=64), expected, atol=1e-5)
    assert ours.token_budget <= 300
    assert "out of memory on cpu" in caplog.text
    asked.clear()
    ours.run(tokens, max_texts=64)
    assert max(asked) <= 300


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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnCuda:
    def test_fp16_agrees_with_sentence_transformers(self, backend, tokens, reference):
        vectors = backend(device="cuda:0", precision="fp16").run(tokens, max_texts=64)
        assert (vectors * reference).sum(axis=1).min() > LEAST_COSINE["fp16"]

    def test_texts_end_to_end_agree_with_sentence_transformers(self, backend, tokens, reference):
        ours = backend(device="cuda:0", precision="bf16")
        assert isinstance(ours._layout, EndToEnd)
        assert (ours.run(tokens, max_texts=64) * reference).sum(axis=1).min() > LEAST_COSINE["bf16"]

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
