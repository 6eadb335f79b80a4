"""A table whose ids are texts goes through every phase, the gate included, and is searched before and after."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.quarantine import list_quarantined, release_all
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import swap
from bge_pipeline.search import Retriever
from bge_pipeline_tests.kinds import kinds
from bge_pipeline_tests.support import (
    ENCODER,
    NASTY_IDS,
    SEGMENTS,
    agreed,
    as_it_stands,
    execute,
    give_text_ids,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

KINDS = {
    "varchar": ("varchar(300)", None),
    "by bytes": ('text COLLATE "C"', None),
    "letters before case": (
        "text COLLATE numbers",
        "CREATE COLLATION numbers (provider = icu, locale = 'en-u-kn-true')",
    ),
    "blind for accents and case": (
        "varchar(300) COLLATE blind",
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
    ),
}


@pytest.fixture(params=kinds(KINDS, "by bytes", "blind for accents and case"))
def text_ids(request, database):
    id_type, collation = request.param
    if collation is not None:
        try:
            as_it_stands(database, collation)
        except DBAPIError as error:
            pytest.skip(str(error.orig).strip())
    give_text_ids(database, id_type)
    return database


def found_by_its_text(database, retriever, mode):
    """Which of the rows with a nasty id are among the first that a search for their text returns."""
    rows = execute(database, "SELECT id, text FROM segments WHERE id = ANY(:ids)", ids=NASTY_IDS)
    return {
        row.id for row in rows if row.id in [hit.id for hit in retriever.search(row.text, mode=mode, top_k=5).results]
    }


def test_text_ids_go_through_all_phases(text_ids, make_settings):
    database = text_ids
    settings = make_settings(benchmark_texts=50)
    service = EmbeddingsService(ENCODER, settings)
    planned = plan(Migration(database, settings), service)
    assert planned.obstacles == ()
    assert planned.writing is not None

    expand(Migration(database, settings), ENCODER.space)
    with database.autocommit() as connection:
        kind = require_table(Migration(database, settings)).table.id_kind
        ranges = cut_ranges(connection, SEGMENTS, kind, 70)
    assert [backfill(Migration(database, settings), ENCODER, id_range).rows for id_range in ranges] == [
        70,
        70,
        70,
        70,
        20,
    ]
    swap(Migration(database, settings), service)
    status = read_status(Migration(database, settings))
    assert (status.phase, status.rows, status.embedded, status.pending) == ("swapped", 300, 300, 0)
    assert wrong_vectors(database, ENCODER, "embedding") == []

    retriever = Retriever(database, settings, service)
    for mode in ("dense", "lexical", "hybrid"):
        assert len(found_by_its_text(database, retriever, mode)) > len(NASTY_IDS) * 0.8

    execute(database, "UPDATE segments SET text = 'an oryx by the river' WHERE id = :id", id="it's")
    execute(database, "UPDATE segments SET text = '...' WHERE id = :id", id="%s :x {id}")
    embed_pending(Migration(database, settings))
    assert wrong_vectors(database, ENCODER, "embedding") == []
    assert retriever.search("oryx by the river").results[0].id == "it's"

    rollback(Migration(database, settings))
    assert read_status(Migration(database, settings)).dimensions == 1_536
    swap(Migration(database, agreed(Migration(database, settings))), service)
    retire(Migration(database, settings))
    assert read_status(Migration(database, settings)).phase == "retired"
    assert wrong_vectors(database, ENCODER, "embedding") == []


@pytest.mark.parametrize(
    ("id_type", "expression"),
    [
        ("timestamptz", "to_timestamp(id * 1.5)"),
        ("bytea", "decode(lpad(to_hex(id), 4, '0'), 'hex')"),
        ("numeric(20, 3)", "id / 8.0"),
        ("char(40)", "'note ' || id"),
    ],
)
def test_ids_that_a_driver_has_types_of_its_own_for_pass_the_gate_too(database, make_settings, id_type, expression):
    settings = make_settings(benchmark_texts=50)
    service = EmbeddingsService(ENCODER, settings)
    as_it_stands(database, "ALTER TABLE segments ALTER COLUMN id DROP IDENTITY")
    as_it_stands(database, f"ALTER TABLE segments ALTER COLUMN id TYPE {id_type} USING {expression}")
    assert plan(Migration(database, settings), service).writing is not None
    expand(Migration(database, settings), ENCODER.space)
    backfill(Migration(database, settings), ENCODER)
    result = swap(Migration(database, settings), service)
    assert result.gate is not None
    assert result.gate.passed
    assert wrong_vectors(database, ENCODER, "embedding") == []
    ((words,),) = as_it_stands(database, "SELECT text FROM segments ORDER BY id LIMIT 1")
    assert words in [hit.text for hit in Retriever(database, settings, service).search(words).results]


def test_text_ids_in_quarantine_are_named_and_released(text_ids, settings):
    database = text_ids
    expand(Migration(database, settings), ENCODER.space)
    statement = (
        "INSERT INTO segments_embedding_quarantine (row_id, error, quarantined_at, text_digest) "
        "SELECT id, 'bad', now(), md5(convert_to(text, 'UTF8'))::uuid FROM segments WHERE id IN ('', '..', 'it''s')"
    )
    as_it_stands(database, statement)
    assert backfill(Migration(database, settings), ENCODER).rows == 297
    with database.autocommit() as connection:
        assert {row.row_id for row in list_quarantined(connection, SEGMENTS)} == {"", "..", "it's"}
        assert release_all(connection, SEGMENTS) == 3
    assert backfill(Migration(database, settings), ENCODER).rows == 3
