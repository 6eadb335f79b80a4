import pytest
import torch

from bge_pipeline.embedding import attention
from bge_pipeline.embedding.attention import packed_attention
from bge_pipeline_tests.embedding.conftest import attend_text_by_text


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bf16"), ("mps", "fp16"), ("cuda:0", "fp32")])
def test_there_is_none_without_cuda_and_in_full_precision(device, precision):
    assert packed_attention(device, precision) is None


@pytest.mark.parametrize(("capability", "has_it"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_there_is_one_from_ampere_on(monkeypatch, capability, has_it):
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert (packed_attention("cuda:0", "bf16") is not None) == has_it


@pytest.mark.parametrize("scale", [8**-0.5, 0.5])
@pytest.mark.parametrize("knows_scale", [True, False])
def test_pytorchs_function_is_called_as_it_can_be(scale, knows_scale):
    """torch 2.10 has no `scale`; what is asked for is done with the query instead."""

    def new(query, key, value, starts, _ends, longest, _longest, *, scale=None):
        return attend_text_by_text(query, key, value, starts, longest, scale)

    def old(query, key, value, starts, _ends, longest, _longest, is_causal=False):
        return attend_text_by_text(query, key, value, starts, longest, query.shape[-1] ** -0.5)

    states = torch.randn(3, 10, 2, 8, generator=torch.Generator().manual_seed(0)).unbind()
    boundaries = torch.tensor([0, 4, 10], dtype=torch.int32)
    ours = attention._calling(new if knows_scale else old)
    expected = attend_text_by_text(*states, boundaries, 6, scale)
    torch.testing.assert_close(ours(*states, boundaries, 6, scale), expected)
