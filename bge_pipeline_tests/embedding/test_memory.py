import pytest
import torch
from transformers import BertConfig

from bge_pipeline.embedding.memory import is_out_of_memory, tokens_that_fit

SMALL = BertConfig(hidden_size=384, intermediate_size=1_536)
GIB = 1 << 30


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_known_in_the_words_of_each_library(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("something else"), ValueError("cannot allocate memory")])
def test_another_error_is_not_taken_for_it(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(("free", "tokens"), [(64 * GIB, 65_536), (GIB // 4, 10_922), (0, 512)])
def test_on_cuda_half_of_the_free_memory_is_used_within_bounds(monkeypatch, free, tokens):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 80 * GIB))
    assert tokens_that_fit("cuda:0", SMALL) == tokens


def test_elsewhere_the_number_is_fixed():
    assert (tokens_that_fit("cpu", SMALL), tokens_that_fit("mps", SMALL)) == (1_024, 16_384)
