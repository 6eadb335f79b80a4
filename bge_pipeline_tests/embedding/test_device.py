from dataclasses import replace

import pytest
import torch

from bge_pipeline.embedding import device
from bge_pipeline.embedding.device import best_precision, check_device, resolve_device
from bge_pipeline.embedding.families import OTHER
from bge_pipeline.errors import ConfigurationError


def test_a_cuda_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="EMBEDDING_DEVICE=cuda:99"):
        check_device("cuda:99")


@pytest.mark.parametrize(
    ("wanted", "has_bf16", "expected"), [("fp16", True, "fp16"), ("bf16", True, "bf16"), ("bf16", False, "fp16")]
)
def test_on_cuda_a_family_gets_the_half_precision_that_it_wants_where_the_gpu_has_it(
    monkeypatch, wanted, has_bf16, expected
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bf16 or including_emulation)
    assert best_precision("cuda:0", replace(OTHER, half_on_cuda=wanted)) == expected


def test_metal_has_fp16_and_a_cpu_what_it_is_quick_at(monkeypatch):
    assert best_precision("mps", OTHER) == "fp16"
    for is_quicker, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "is_quicker_in_bf16", lambda is_quicker=is_quicker: is_quicker)
        assert best_precision("cpu", OTHER) == expected


def test_a_device_that_is_named_is_taken_as_it_stands():
    assert resolve_device("cuda") == "cuda:0"
    assert resolve_device("mps") == "mps"
    assert resolve_device("auto", "openvino") == "cpu"
