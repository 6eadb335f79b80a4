import pytest
import torch

from bge_pipeline.embedding.attention import packed_attention


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bf16"), ("mps", "fp16"), ("cuda:0", "fp32")])
def test_there_is_none_without_cuda_and_in_full_precision(device, precision):
    assert packed_attention(device, precision) is None


@pytest.mark.parametrize(("capability", "has_it"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_there_is_one_from_ampere_on(monkeypatch, capability, has_it):
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert (packed_attention("cuda:0", "bf16") is not None) == has_it
