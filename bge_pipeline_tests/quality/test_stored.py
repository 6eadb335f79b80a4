"""Stored vectors are judged by one set of bounds: what one check takes, no other refuses."""

from __future__ import annotations

import numpy as np
import pytest

from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.verdict import judge_quality
from bge_pipeline.phases.verify import verify_space, verify_unit_length
from bge_pipeline.quality.bounds import SAME_VECTOR_COSINE, UNIT_LENGTH_TOLERANCE
from bge_pipeline_tests.support import ENCODER, execute, fill

pytestmark = pytest.mark.pgvector


@pytest.fixture
def rewrite(database, migration):
    """Give every row the model's vector, turned by an angle and of another length."""

    def rewrite(cosine: float = 1.0, length: float = 1.0) -> None:
        fill(migration)
        rows = execute(database, "SELECT id, text FROM segments")
        vectors = ENCODER.encode(ENCODER.tokenize([row.text for row in rows])).astype(np.float64)
        aside = np.random.default_rng(0).standard_normal(vectors.shape)
        aside -= (aside * vectors).sum(axis=1, keepdims=True) * vectors
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        turned = length * (cosine * vectors + np.sqrt(1 - cosine**2) * aside)
        for row, vector in zip(rows, turned, strict=True):
            execute(
                database, "UPDATE segments SET embedding_384 = :v WHERE id = :id", v=str(vector.tolist()), id=row.id
            )

    return rewrite


def failed(database, settings) -> set[str]:
    """What the checks of Dagster and of the gate say about the column, by the same names."""
    verdict = judge_quality(Migration(database, settings), EmbeddingsService(ENCODER, settings))
    names = {check.name for check in verdict.gate.failures} & {"unit_length", "stored_vectors_matching"}
    own = {
        "unit_length": verify_unit_length(Migration(database, settings)).passed,
        "stored_vectors_matching": verify_space(Migration(database, settings), ENCODER).passed,
    }
    assert {name for name, passed in own.items() if not passed} == names
    return names


def test_what_another_precision_makes_is_taken_by_every_check(database, settings, rewrite):
    rewrite(cosine=(1 + SAME_VECTOR_COSINE) / 2, length=1 + UNIT_LENGTH_TOLERANCE / 2)
    assert failed(database, settings) == set()


def test_what_is_not_the_models_is_refused_by_every_check(database, settings, rewrite):
    rewrite(cosine=SAME_VECTOR_COSINE - 0.02, length=1 + UNIT_LENGTH_TOLERANCE * 2)
    assert failed(database, settings) == {"unit_length", "stored_vectors_matching"}


def test_a_range_is_judged_by_its_own_rows(database, migration, rewrite):
    rewrite()
    execute(database, "UPDATE segments SET embedding_384 = embedding_384 + embedding_384 WHERE id > 200")
    first, second = IdRange(1, 201, INTEGERS), IdRange(201, 301, INTEGERS)
    assert verify_unit_length(migration, first).passed
    found = verify_unit_length(migration, second)
    assert (found.rows_off_length, found.sampled_rows) == (100, 100)
    assert verify_space(migration, ENCODER, second).passed


def test_a_column_without_vectors_has_nothing_wrong(database, migration, rewrite):
    rewrite()
    execute(database, "UPDATE segments SET embedding_384 = NULL")
    assert verify_unit_length(migration).sampled_rows == 0
    assert verify_space(migration, ENCODER).agreement is None
