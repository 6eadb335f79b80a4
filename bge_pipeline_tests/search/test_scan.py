"""How thoroughly an index is searched."""

import pytest

from bge_pipeline.search.scan import VectorIndex, default_probes, scan_settings


def index(method: str, lists: int = 0) -> VectorIndex:
    return VectorIndex("i", method, "cosine", "embedding", "vector", lists)


def test_probes_are_twice_the_square_root_of_the_lists_and_never_more_than_there_are() -> None:
    assert [default_probes(lists) for lists in (1, 2, 6, 100, 1_000)] == [1, 2, 5, 20, 64]
    assert scan_settings(index("ivfflat", 10), (0, 8, 0), 20, probes=50)["ivfflat.probes"] == 10


def test_ef_search_covers_the_candidates_within_what_pgvector_takes() -> None:
    values = [scan_settings(index("hnsw"), (0, 8, 0), n)["hnsw.ef_search"] for n in (20, 200, 5_000)]
    assert values == [100, 200, 1_000]


@pytest.mark.parametrize(
    ("version", "iterates"), [((0, 7, 4), False), ((0, 8), True), ((0, 8, 5), True), ((1, 0), True)]
)
def test_iterative_scans_are_asked_for_where_pgvector_has_them(version: tuple[int, ...], iterates: bool) -> None:
    for method in ("ivfflat", "hnsw"):
        assert (f"{method}.iterative_scan" in scan_settings(index(method, 4), version, 20)) is iterates


def test_nothing_is_set_without_an_index_or_for_another_extension() -> None:
    assert scan_settings(None, (0, 8), 20) == {}
    assert scan_settings(index("vchordrq"), (0, 8), 20) == {}
