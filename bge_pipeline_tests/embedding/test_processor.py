"""Whether bf16 is worth it on a processor, by what Linux tells of it."""

import pytest

from bge_pipeline.embedding import processor
from bge_pipeline.embedding.processor import is_quicker_in_bf16

SAPPHIRE_RAPIDS = "GenuineIntel", "fma avx2 avx512f avx512bw avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8"
WITHOUT_AMX = "GenuineIntel", "fma avx2 avx512f avx512bw avx512_bf16 avx512_fp16"
ICE_LAKE = "GenuineIntel", "fma avx2 avx512f avx512bw avx512_vnni"
GENOA = "AuthenticAMD", "fma avx2 avx512f avx512bw avx512_vnni avx512_bf16"
MILAN = "AuthenticAMD", "fma avx2"


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What Linux tells is in this file."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_TOLD_BY_LINUX", path)
    is_quicker_in_bf16.cache_clear()
    yield path
    is_quicker_in_bf16.cache_clear()


@pytest.mark.parametrize(
    ("found", "expected"),
    [(SAPPHIRE_RAPIDS, True), (WITHOUT_AMX, False), (ICE_LAKE, False), (GENOA, True), (MILAN, False)],
    ids=["Sapphire Rapids", "without AMX", "Ice Lake", "Genoa", "Milan"],
)
def test_instructions_alone_do_not_make_it_quicker(told, found, expected):
    vendor, flags = found
    one = f"processor\t: {{}}\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nbugs\t\t: none\n\n"
    told.write_text(one.format(0) + one.format(1))

    assert is_quicker_in_bf16() is expected


def test_a_system_that_does_not_tell_computes_in_fp32(told):
    assert not told.exists()
    assert not is_quicker_in_bf16()
