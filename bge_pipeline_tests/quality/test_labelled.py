"""What the labelled half of the gate asks, of which model, and on how many queries."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, OutOfMemory
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.verdict import compared_columns
from bge_pipeline.quality import old_model
from bge_pipeline.quality.labelled import measure_labelled
from bge_pipeline_tests.support import ENCODER, execute, fill, store_vectors

pytestmark = pytest.mark.pgvector


@pytest.fixture
def queries_file(database, tmp_path):
    """The first words of thirty rows, each answered by its row."""
    rows = execute(database, "SELECT id, text FROM segments ORDER BY id LIMIT 30")
    path = tmp_path / "queries.jsonl"
    lines = (json.dumps({"query": " ".join(row[1].split()[:8]), "relevant": [row[0]]}) for row in rows)
    path.write_text("\n".join(lines))
    return path


def made_by(database, encoder):
    """Old vectors of that encoder, with nothing noted."""
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, "COMMENT ON COLUMN segments.embedding IS NULL")
    store_vectors(database, "embedding", encoder)


def measured(database, settings, service=None, **options):
    fill(Migration(database, settings))
    service = service or EmbeddingsService(ENCODER, settings)
    state = require_table(Migration(database, settings))
    with database.autocommit() as connection:
        return measure_labelled(connection, settings, service, compared_columns(state), **options)


class TestOnAFirstMigration:
    def test_the_declared_old_model_is_asked_too(self, database, make_settings, queries_file):
        made_by(database, HashingEncoder(1536))
        found = measured(database, make_settings(eval_queries=queries_file, legacy_model="hashing"))
        assert found.ndcg_old > 0.5
        assert found.ndcg_new > 0.5

    def test_without_a_declaration_the_new_one_is_measured_alone(self, database, make_settings, queries_file):
        made_by(database, HashingEncoder(1536))
        assert measured(database, make_settings(eval_queries=queries_file)).ndcg_old is None

    def test_a_model_that_did_not_make_the_vectors_is_found_out(self, database, make_settings, queries_file, caplog):
        made_by(database, HashingEncoder(1536, seed=5))
        with caplog.at_level(logging.WARNING, "bge_pipeline"):
            found = measured(database, make_settings(eval_queries=queries_file, legacy_model="hashing"))
        assert found.ndcg_old is None
        assert "LEGACY_MODEL=hashing did not make the vectors" in caplog.text

    def test_want_of_memory_for_the_old_one_is_no_measurement(self, database, make_settings, queries_file, monkeypatch):
        def no_memory(*_):
            raise OutOfMemory("there was no memory for a second model")

        made_by(database, HashingEncoder(1536))
        monkeypatch.setattr(old_model, "load_encoder_named", no_memory)
        with pytest.raises(OutOfMemory, match="a second model"):
            measured(database, make_settings(eval_queries=queries_file, legacy_model="hashing"))


def test_the_reranker_of_the_application_is_part_of_what_is_measured(database, make_settings, queries_file):
    settings = make_settings(eval_queries=queries_file, enable_reranker=True, rerank_top_k=40)
    reranker = WorstFirst()
    found = measured(database, settings, reranked_by(reranker, settings))
    assert found.reranked
    assert {count for _, count in reranker.asked} == {40}
    assert found.ndcg_new < 0.2  # the right rows are thrown away by this reranker, as users would see


@pytest.mark.parametrize("fails", ["it raises", "another takes its place", "none is there"])
def test_both_columns_are_judged_by_one_reranker_or_by_none(database, make_settings, queries_file, caplog, fails):
    made_by(database, HashingEncoder(1536))
    settings = make_settings(eval_queries=queries_file, enable_reranker=True, rerank_top_k=40, legacy_model="hashing")
    reranker = None if fails == "none is there" else WorstFirst(fails, after=40)
    found = measured(database, settings, reranked_by(reranker, settings))
    assert not found.reranked
    assert "reranked" not in found.basis()
    assert min(found.ndcg_old, found.ndcg_new) > 0.5
    assert ("both are measured again without a reranker" in caplog.text) == (reranker is not None)


def reranked_by(reranker, settings):
    """A service with that reranker, or, as where none can be loaded, without."""
    service = EmbeddingsService(ENCODER, settings)
    service._reranker, service._reranker_was_tried = reranker, True
    return service


class WorstFirst:
    """A reranker that is wrong about everything; while the second column is measured something happens to it."""

    def __init__(self, happens=None, after=None):
        self.model, self.asked = "large", []
        self._happens, self._after = happens, after

    def score(self, query, docs):
        self.asked.append((query, len(docs)))
        if len(self.asked) == self._after:
            if self._happens == "it raises":
                raise OutOfMemory("there was no memory for a reranker")
            self.model = "small"
        return np.arange(len(docs), dtype=np.float32)


def test_queries_whose_passages_the_table_lacks_are_left_out_and_counted(database, make_settings, queries_file):
    with queries_file.open("a") as file:
        file.write('\n{"query": "of another table", "relevant": ["123456789", "A-1"]}')
    found = measured(database, make_settings(eval_queries=queries_file))
    assert (found.queries, found.available, found.absent) == (30, 31, 1)
    assert "of 1 the table has no relevant passage" in found.basis()


def test_ids_of_another_table_are_no_evidence(database, make_settings, tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "anything", "relevant": ["A-1"]}\n')
    with pytest.raises(ConfigurationError, match="has no relevant passage of any of its 1 queries"):
        measured(database, make_settings(eval_queries=path))


def test_a_large_file_is_sampled_and_says_so(database, make_settings, queries_file):
    told = []
    found = measured(
        database,
        make_settings(eval_queries=queries_file, quality_max_queries=7),
        on_rows=lambda *arguments: told.append(arguments),
    )
    assert (found.queries, found.available) == (7, 30)
    assert found.basis() == "7 of 30 labelled queries"
    assert {column for column, _, _ in told} == {"embedding_384", "embedding"}
    assert told[-1][1] == 300
