"""The calls of an application of the first version, word for word but for the imports, on real vectors and a real table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bge_pipeline import EmbeddingGenerator, EmbeddingsService, Retriever, SegmentsDatabase
from bge_pipeline.compat import embedding_generator
from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.reranker import Reranker
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import settings_from_env
from bge_pipeline_tests.roads import ROOT

QUERY = "How do I delete a key from a dictionary?"


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch, tiny_cross_encoder: Path, home: Path) -> Iterator[None]:
    """The environment of such an application: the real bundled model, and a reranker of random weights."""
    variables = {
        "EMBEDDING_MODEL": "bundled",
        "EMBEDDING_BACKEND": "torch",
        "EMBEDDING_PRECISION": "fp32",
        "EMBEDDING_DEVICE": "cpu",
        "ENABLE_RERANKER": "true",
        "RERANKER_MODEL": str(tiny_cross_encoder),
        "RERANK_TOP_K": "200",
        "RETURN_TOP_K": "20",
        "BGE_PIPELINE_HOME": str(home),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _forget()
    yield
    EmbeddingsService.shutdown()
    _forget()


def _forget() -> None:
    settings_from_env.cache_clear()
    embedding_generator._own_service.cache_clear()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many passages the reranker was given, search by search."""
    seen: list[int] = []
    score = Reranker.score
    monkeypatch.setattr(Reranker, "score", lambda *args: seen.append(len(args[2])) or score(*args))
    return seen


def test_encode_and_rerank_on_the_class(scored: list[int]) -> None:
    texts = ["Use del d[key].", "Sockets listen.", "A generator yields values."]
    query = QUERY
    docs = [f"passage {number} about keys and dictionaries" for number in range(50)]

    EmbeddingsService.init_from_env()
    embeddings = EmbeddingsService.encode_texts(texts, batch_size=256)
    top = EmbeddingsService.rerank(query, docs, top_k=20)

    assert (embeddings.shape, embeddings.dtype) == ((3, 384), np.float32)
    assert (embeddings @ EmbeddingsService.encode_queries([query])[0]).argmax() == 0
    assert scored == [50]
    assert len(set(top)) == 20
    assert top != list(range(20))

    service = EmbeddingsService.init_from_env()
    assert service.encode_texts(texts, batch_size=256).tobytes() == embeddings.tobytes()
    assert service.rerank(query, docs, top_k=20) == top


def test_generate_embeddings() -> None:
    embeddings = EmbeddingGenerator().generate_embeddings(["Use del d[key].", "Sockets listen."])

    assert [len(vector) for vector in embeddings] == [384, 384]
    np.testing.assert_allclose(
        embeddings, EmbeddingsService.encode_texts(["Use del d[key].", "Sockets listen."]), atol=1e-6
    )


@pytest.mark.pgvector
def test_the_query_path_fetches_200_candidates_and_returns_20(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("QUALITY_GATE", "off")
    monkeypatch.setenv("SEARCH_PROBES", "100")
    _forget()
    migrate(Migration(database, settings_from_env()), EmbeddingsService.init_from_env())
    db = SegmentsDatabase()
    query = QUERY

    EmbeddingsService.init_from_env()
    query_embedding = EmbeddingsService.encode_texts([query])[0]
    candidates = nearest(db, query_embedding, 200)
    ranked = EmbeddingsService.rerank(query, [text for _, text in candidates], top_k=20)
    results = [candidates[index] for index in ranked]
    db.close()

    assert (len(candidates), len(results), scored) == (200, 20, [200])
    found = Retriever(database, settings_from_env()).search(query)
    assert found.reranked
    assert scored == [200, 200]
    assert [result.id for result in found.results] == [row_id for row_id, _ in results]


def nearest(db: SegmentsDatabase, vector: np.ndarray, top_k: int) -> list[tuple[int, str]]:
    """The rows nearest to a vector."""
    with db.get_connection() as connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL ivfflat.probes = 100")
        cursor.execute(
            "SELECT id, text FROM segments ORDER BY embedding <=> %s LIMIT %s", [str(vector.tolist()), top_k]
        )
        return cursor.fetchall()


@pytest.mark.parametrize(
    "call",
    [
        lambda: EmbeddingsService.encode_texts(["text"]).shape == (1, 384),
        lambda: EmbeddingsService.encode_queries(["text"]).shape == (1, 384),
        lambda: len(EmbeddingsService.rerank("text", ["one", "two"])) == 2,
        lambda: EmbeddingsService.device_memory_bytes() is None,
    ],
)
def test_a_call_on_the_class_makes_the_service_where_it_is_missing(call: Callable[[], bool]) -> None:
    assert EmbeddingsService.current() is None
    assert call()
    assert EmbeddingsService.current() is EmbeddingsService.init_from_env()


def test_looking_at_the_class_loads_nothing_and_its_properties_come_with_the_service() -> None:
    for name in dir(EmbeddingsService):
        getattr(EmbeddingsService, name, None)
    assert EmbeddingsService.current() is None
    with pytest.raises(AttributeError, match=r"no dimensions before init_from_env\(\) was called"):
        _ = EmbeddingsService.dimensions

    EmbeddingsService.init_from_env()

    assert (EmbeddingsService.dimensions, EmbeddingsService.device) == (384, "cpu")
    assert EmbeddingsService.space == EmbeddingsService.init_from_env().space


def test_shutdown_on_the_class_ends_the_shared_service_and_no_other() -> None:
    own = EmbeddingsService.from_settings(settings_from_env())
    shared = EmbeddingsService.init_from_env()

    EmbeddingsService.shutdown()

    assert EmbeddingsService.current() is None
    assert EmbeddingsService.init_from_env() is not shared
    assert own.encode_texts(["text"]).shape == (1, 384)
    own.shutdown()


def test_the_guide_names_the_import_of_today_for_each_of_the_first_version() -> None:
    guide = (ROOT / "docs/migration-guide.md").read_text(encoding="utf-8")
    today = dict(re.findall(r"^\| `(from \S+ import \w+)` \| `(from \S+ import \w+)` \|$", guide, re.MULTILINE))

    assert [line.split()[-1] for line in today] == ["EmbeddingsService", "EmbeddingGenerator", "SegmentsDatabase"]
    for old, new in today.items():
        names: dict[str, object] = {}
        exec(new, names)
        assert old.split()[-1] in names


TYPED = """
from typing import assert_type
from bge_pipeline import EmbeddingsService
service = EmbeddingsService.init_from_env()
assert_type(EmbeddingsService.rerank("query", ["passage"], top_k=20), list[int])
assert_type(service.rerank("query", ["passage"]), list[int])
assert_type(EmbeddingsService.dimensions, int)
assert_type(service.device, str)
EmbeddingsService.shutdown()
EmbeddingsService.encode_texts(["text"], batch_size="many")  # refused
EmbeddingsService.rerank("query")  # refused
service.encode_queries(3)  # refused
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_a_type_checker_sees_the_same_signatures_on_the_class_and_on_an_instance(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    options = ["--strict", "--config-file", "pyproject.toml", "--follow-imports", "silent", "--no-error-summary"]

    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(tmp_path / "typed.py")],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    refused = [number for number, line in enumerate(TYPED.splitlines(), start=1) if line.endswith("# refused")]
    assert [int(line.split(":")[1]) for line in done.stdout.splitlines()] == refused, done.stdout + done.stderr
