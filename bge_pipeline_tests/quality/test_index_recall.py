"""What an ANN index misses, and what it takes to miss less."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sampling import sample_vectors
from bge_pipeline.errors import TargetTableError
from bge_pipeline.quality import recall_queries
from bge_pipeline.quality.index_recall import index_recall, least_effort, recall_at_k, recommend_for_recall
from bge_pipeline.quality.recall_queries import RecallQueries, exact_ranking
from bge_pipeline.search import scan
from bge_pipeline.search.column import read_column
from bge_pipeline.search.wire import fetch
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import SEGMENTS, execute

pytestmark = pytest.mark.pgvector


@pytest.fixture
def sparse_probes(database: Database) -> None:
    """Twelve lists over 300 rows, so that one probe misses much."""
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, "CREATE INDEX lists ON segments USING ivfflat (embedding vector_cosine_ops) WITH (lists = 12)")


@pytest.fixture
def queries(database: Database) -> np.ndarray:
    with database.autocommit() as connection:
        return sample_vectors(connection, SEGMENTS, ["embedding"], 30).vectors["embedding"]


def test_the_exact_ranking_is_numpys(database: Database, settings: Settings, queries: np.ndarray) -> None:
    rows = execute(database, "SELECT id, CAST(embedding AS real[]) FROM segments")
    vectors = np.array([row[1] for row in rows], np.float32)
    with database.autocommit() as connection:
        rankings = exact_ranking(connection, settings, "embedding", queries[:5], k=3)
    for query, ranking in zip(queries, rankings, strict=False):
        similarities = vectors @ query
        best = sorted(range(len(rows)), key=lambda row: -similarities[row])[:3]
        assert similarities[[next(n for n, r in enumerate(rows) if r[0] == i) for i in ranking]] == pytest.approx(
            similarities[best], abs=1e-5
        )


@pytest.mark.usefixtures("sparse_probes")
def test_recall_rises_with_the_probes(
    database: Database, make_settings: Callable[..., Settings], queries: np.ndarray
) -> None:
    recalls = []
    for probes in (1, 4, 12):
        with database.autocommit() as connection:
            searched = read_column(connection, make_settings(), "embedding")
            asked = RecallQueries(queries, k=10)
            recalls.append(index_recall(connection, make_settings(search_probes=probes), searched, asked))
    assert recalls[0] < recalls[1] < recalls[2] == 1


@pytest.mark.usefixtures("sparse_probes")
def test_the_recommendation_is_the_least_that_reaches_the_wanted_recall(
    database: Database, settings: Settings, make_settings: Callable[..., Settings], queries: np.ndarray
) -> None:
    found = recommend_for_recall(database, settings, 0.9, queries, k=10)
    assert (found.setting, found.default, found.reached) == ("SEARCH_PROBES", 7, True)
    assert [point.recall >= 0.9 for point in found.points] == [False] * (len(found.points) - 1) + [True]
    measured = recall_at_k(database, make_settings(search_probes=found.value), queries, k=10)
    assert measured.recall == pytest.approx(found.points[-1].recall)
    assert measured.session["ivfflat.probes"] == found.value


@pytest.mark.usefixtures("sparse_probes")
@pytest.mark.parametrize("wanted", [0.6, 0.9, 0.99, 1.0])
def test_quickly_the_same_is_found_with_fewer_searches(
    database: Database, settings: Settings, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch, wanted: float
) -> None:
    searches: list[int] = []
    monkeypatch.setattr(recall_queries, "fetch", lambda *given: (searches.append(1), fetch(*given))[1])
    found = recommend_for_recall(database, settings, wanted, queries, k=10)
    patiently = len(searches)
    with database.autocommit() as connection:
        searched = read_column(connection, settings, "embedding")
        asked = RecallQueries(queries, k=10)
        quickly = least_effort(connection, settings, searched, asked, wanted, quickly=True)

    assert quickly.points[0].value == found.default
    assert quickly.reached == found.reached
    assert [point.recall >= wanted for point in quickly.points] == [False] * (len(quickly.points) - 1) + [True]
    assert quickly.value <= 1.5 * max(found.value, found.default)
    assert len(searches) - patiently < patiently


@pytest.mark.usefixtures("sparse_probes")
@pytest.mark.parametrize("wanted", [0.6, 0.9, 0.97, 1.0])
def test_quickly_a_value_is_given_up_once_it_cannot_suffice(
    database: Database, settings: Settings, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch, wanted: float
) -> None:
    searches: list[int] = []
    monkeypatch.setattr(recall_queries, "fetch", lambda *given: (searches.append(1), fetch(*given))[1])
    monkeypatch.setattr(scan, "default_probes", lambda _lists: 1)
    found = recommend_for_recall(database, settings, wanted, queries, k=10)
    patiently = len(searches)
    with database.autocommit() as connection:
        searched = read_column(connection, settings, "embedding")
        asked = RecallQueries(queries, k=10)
        quickly = least_effort(connection, settings, searched, asked, wanted, quickly=True)

    assert (quickly.value, quickly.reached) == (found.value, found.reached)
    assert quickly.points[-1].recall == pytest.approx(found.points[-1].recall)
    assert len(searches) - patiently < patiently or len(found.points) == 1
    if wanted == 1.0:
        assert len(searches) - patiently < 0.5 * patiently


def test_hnsw_is_measured_by_ef_search(database: Database, settings: Settings) -> None:
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, "CREATE INDEX ON segments USING hnsw (embedding vector_cosine_ops)")
    found = recommend_for_recall(database, settings, 0.9, samples=20)
    assert found.setting == "SEARCH_EF_SEARCH"
    assert found.default == settings.rerank_top_k
    assert found.reached


def test_without_an_index_every_search_is_exact(database: Database, settings: Settings) -> None:
    execute(database, "DROP INDEX segments_embedding_idx")
    measured = recall_at_k(database, settings, samples=10)
    assert (measured.recall, measured.index, measured.queries) == (1.0, None, 10)
    assert recommend_for_recall(database, settings) is None
    assert measured.as_metadata()["recall"] == 1.0


@pytest.mark.pgvector("0.7")
def test_float16_in_the_index_counts_against_it(database: Database, settings: Settings, queries: np.ndarray) -> None:
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(
        database,
        "CREATE INDEX ON segments USING ivfflat ((CAST(embedding AS halfvec(1536))) halfvec_cosine_ops) WITH (lists = 1)",
    )
    with database.autocommit() as connection:
        searched = read_column(connection, settings, "embedding")
        assert index_recall(connection, settings, searched, RecallQueries(queries, k=10)) > 0.9


def test_a_column_without_vectors_cannot_be_measured(database: Database, settings: Settings) -> None:
    execute(database, "UPDATE segments SET embedding = NULL")
    with pytest.raises(TargetTableError, match="holds no vectors"):
        recall_at_k(database, settings)
