import subprocess

import pytest

from bge_pipeline.embedding.openvino import conversion
from bge_pipeline.errors import ModelUnavailable


def test_a_child_that_fails_is_reported_with_its_reason(tmp_path):
    job = {"act": "quantize", "source": str(tmp_path), "layout": "padded", "target": str(tmp_path)}
    with pytest.raises(ModelUnavailable, match="cannot quantize the model for OpenVINO: FileNotFoundError"):
        conversion._run_child("some model", job)


def test_a_child_that_was_stopped_for_want_of_memory_is_want_of_memory(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(conversion.subprocess, "run", lambda *_args, **_options: killed)
    with pytest.raises(MemoryError, match="no memory to convert some model"):
        conversion._run_child("some model", {"act": "convert"})
