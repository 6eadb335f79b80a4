"""A migration between models of the same dimensions: vectors of the old model, written after the swap, are noticed."""

from __future__ import annotations

import json
import logging

import pytest

from bge_pipeline.cli import operating
from bge_pipeline.database.recent import sample_written_since
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ModelUnavailable
from bge_pipeline.phases import application_vectors
from bge_pipeline.phases.application_vectors import (
    compare_application_vectors,
    compare_with_recorded_model,
    written_since,
)
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline_tests.endpoint_server import serving
from bge_pipeline_tests.support import (
    ENCODER,
    SEGMENTS,
    agreed,
    execute,
    fill_and_swap,
    pending_ids,
    scalar,
    swap,
    wait_until,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

OLD = HashingEncoder(seed=1)


@pytest.fixture
def legacy(database):
    """The demo table with vectors of another model that has 384 dimensions, too."""
    with database.transaction() as connection:
        connection.exec_driver_sql("DROP INDEX segments_embedding_idx")
        connection.exec_driver_sql("ALTER TABLE segments DROP COLUMN embedding")
        connection.exec_driver_sql("ALTER TABLE segments ADD COLUMN embedding vector(384)")
    return database


@pytest.fixture
def swapped(legacy, settings):
    """The same after its migration to ENCODER."""
    fill_and_swap(Migration(legacy, settings))
    return legacy


def made_by(encoder, text):
    return str(encoder.encode(encoder.tokenize([text]))[0].tolist())


def write(database, encoder, text, row=None):
    """The application writes a text with a vector, as a new row or over an old one; its id."""
    statement = (
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text, embedding) SELECT source_id, 'new', "
        "(SELECT max(id) FROM segments), 1e6, :text, CAST(:vector AS vector) FROM segments LIMIT 1 RETURNING id"
        if row is None
        else "UPDATE segments SET text = :text, embedding = CAST(:vector AS vector) WHERE id = :row RETURNING id"
    )
    values = {"text": text, "vector": made_by(encoder, text)} | ({} if row is None else {"row": row})
    return scalar(database, statement, **values)


def compared(database, settings):
    return compare_application_vectors(Migration(database, settings), lambda: ENCODER)


def test_nothing_written_asks_no_model(swapped, settings):
    assert (
        compare_application_vectors(Migration(swapped, settings), lambda: pytest.fail("a model was asked for")) is None
    )
    assert written_since(Migration(swapped, settings), None)[0] == 0


def test_a_new_row_with_an_old_vector_is_noticed(swapped, settings):
    row = write(swapped, OLD, "the application was not told of the swap")
    found = compared(swapped, settings)
    assert (found.compared, found.strangers, found.examples, found.passed) == (1, 1, (str(row),), False)
    assert found.lowest_cosine < 0.5
    assert f"for example {row}" in str(found)


def test_an_old_row_with_a_new_text_and_an_old_vector_is_noticed(swapped, settings):
    write(swapped, OLD, "in the middle of the table", row=150)
    assert compared(swapped, settings).examples == ("150",)


def test_vectors_of_the_new_model_are_none_of_its_business(swapped, settings):
    write(swapped, ENCODER, "the application has changed over")
    execute(swapped, "UPDATE segments SET speaker_label = 'x' WHERE id <= 10")
    found = compared(swapped, settings)
    assert (found.compared, found.strangers, found.passed) == (11, 0, True)


def test_rows_of_this_project_s_own_raise_no_alarm(swapped, settings):
    execute(swapped, "UPDATE segments SET text = 'changed ' || id WHERE id <= 10")
    backfill(Migration(swapped, settings), ENCODER)
    assert compared(swapped, settings).passed


def test_the_statement_that_mends_it_makes_search_find_the_rows(swapped, settings):
    rows = [write(swapped, OLD, "one of many"), write(swapped, OLD, "another", row=150)]
    execute(swapped, compared(swapped, settings).mend)
    assert pending_ids(swapped, "embedding") == sorted(rows)
    backfill(Migration(swapped, settings), ENCODER)
    assert wrong_vectors(swapped, ENCODER, "embedding") == []
    assert compared(swapped, settings).passed


def test_a_text_that_the_model_cannot_embed_is_left_out(swapped, settings):
    class Chokes(HashingEncoder):
        def tokenize(self, texts):
            if "poison" in texts:
                raise RuntimeError("cannot embed poison")
            return super().tokenize(texts)

    write(swapped, ENCODER, "poison")
    write(swapped, OLD, "an old one")
    found = compare_application_vectors(Migration(swapped, settings), Chokes)
    assert (found.compared, found.strangers) == (1, 1)


def test_a_sample_is_enough(swapped, settings):
    vector = made_by(OLD, "the same for all")
    execute(swapped, f"UPDATE segments SET text = 'x', embedding = '{vector}'")
    found = compared(swapped, settings)
    assert 30 <= found.compared == found.strangers <= 90
    assert len(found.examples) == 5


@pytest.mark.parametrize("reason", ["not here", "another", "broken"])
def test_a_model_that_cannot_be_asked_is_said(swapped, settings, reason):
    def encoder():
        if reason == "broken":
            raise ModelUnavailable("the folder is gone")
        return None if reason == "not here" else OLD

    write(swapped, OLD, "an old one")
    found = compare_application_vectors(Migration(swapped, settings), encoder)
    assert (found.compared, found.strangers) == (0, 0)
    assert found.not_compared
    assert "could not be compared" in str(found)


def test_other_dimensions_keep_old_vectors_out_by_themselves(database, migration, settings):
    fill_and_swap(migration)
    write(database, OLD, "of the right dimensions")
    assert compared(database, settings) is None
    assert written_since(migration, None) is None


def test_retire_ends_it(swapped, settings):
    write(swapped, OLD, "an old one")
    retire(Migration(swapped, settings))
    assert compared(swapped, settings) is None


def test_a_second_swap_begins_anew(swapped, settings):
    write(swapped, OLD, "an old one")
    rollback(Migration(swapped, settings))
    backfill(Migration(swapped, settings), ENCODER)
    swap(Migration(swapped, settings))
    assert written_since(Migration(swapped, settings), None)[0] == 0


def test_what_was_seen_once_is_not_looked_at_again(swapped, settings):
    write(swapped, OLD, "an old one")
    looks = [written_since(Migration(swapped, settings), None)]
    assert looks[0][0] == 1

    def is_behind() -> bool:
        """Once every transaction of the server that was older than the write has ended, those of other databases too."""
        looks.append(written_since(Migration(swapped, settings), None))
        return written_since(Migration(swapped, settings), looks[-1][1])[0] == 0

    wait_until(is_behind, 30)
    write(swapped, OLD, "another old one")
    assert written_since(Migration(swapped, settings), looks[-1][1])[0] == 1


def test_a_write_that_was_not_committed_at_the_look_is_seen_by_the_next(swapped, settings):
    from bge_pipeline_tests.support import application

    with application(swapped) as other:
        other.exec_driver_sql("UPDATE segments SET speaker_label = 'x' WHERE id = 1")
        rows, now = written_since(Migration(swapped, settings), None)
        other.commit()
    assert rows == 0
    assert written_since(Migration(swapped, settings), now)[0] == 1


@pytest.mark.parametrize(
    "xid", [4_000_000_000, 1_900_000_000], ids=["of the future", "ahead by less than half a circle"]
)
def test_a_number_of_another_server_is_not_believed(swapped, settings, xid):
    write(swapped, OLD, "an old one")
    assert written_since(Migration(swapped, settings), xid)[0] == 1


def test_transaction_numbers_go_in_a_circle(swapped):
    with swapped.autocommit() as connection:
        all_of_them = sample_written_since(connection, SEGMENTS, "embedding", (1 << 32) - 100, rows=3_000)
        none_of_them = sample_written_since(connection, SEGMENTS, "embedding", 1_000_000_000, rows=3_000)
    assert (len(all_of_them), len(none_of_them)) == (300, 0)
    assert all_of_them.vectors.shape == (300, 384)


def test_a_backfill_from_cron_warns(swapped, settings, caplog):
    write(swapped, OLD, "an old one")
    with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
        backfill(Migration(swapped, settings), ENCODER)
    assert "the application seems to write the old model's still" in caplog.text


def test_status_compares_with_the_recorded_model(swapped, settings, monkeypatch, capsys):
    for name, value in (("DATABASE_URL", settings.database_url.get_secret_value()), ("EMBEDDING_MODEL", "hashing")):
        monkeypatch.setenv(name, value)
    row = write(swapped, OLD, "an old one")
    operating.status_command(json=True)
    told = json.loads(capsys.readouterr().out)["application_vectors"]
    assert (told["compared"], told["strangers"], told["examples"]) == (1, 1, [str(row)])
    assert told["mend"].startswith('UPDATE "public"."segments" SET "embedding" = NULL')
    operating.status_command()
    assert "1 of 1 rows written since the swap" in " ".join(capsys.readouterr().out.split())


def test_status_loads_no_model_where_there_is_nothing_to_compare(swapped, settings, monkeypatch):
    monkeypatch.setattr(application_vectors, "load_recorded", lambda *_: pytest.fail("a model was loaded"))
    assert compare_with_recorded_model(Migration(swapped, settings)) is None


def test_status_sends_an_endpoint_nothing_where_the_settings_name_a_model_of_this_machine(legacy, make_settings):
    with serving() as server:
        of_endpoint = {"embedding_provider": "openai", "embedding_model": "some-model", "quality_gate": "off"}
        by_endpoint = make_settings(embedding_api_url=server.url, search_probes=10, **of_endpoint)
        with open_service(Migration(legacy, by_endpoint)) as service:
            migrate(Migration(legacy, agreed(Migration(legacy, by_endpoint))), service)
        write(legacy, OLD, "an old one")
        server.requests.clear()
        found = compare_with_recorded_model(Migration(legacy, make_settings(embedding_api_url=server.url)))
        assert "some-model is behind an endpoint, to which texts would be sent" in found.not_compared
        assert server.requests == []
        assert compare_with_recorded_model(Migration(legacy, by_endpoint)).strangers == 1


class TestItIsSaidLoudly:
    def test_by_plan(self, legacy, settings):
        (notice,) = plan(Migration(legacy, settings), EmbeddingsService(ENCODER, settings)).notices
        assert notice.startswith("OLD AND NEW VECTORS BOTH HAVE 384 DIMENSIONS")

    def test_by_plan_after_the_swap(self, swapped, settings):
        loud, other = plan(Migration(swapped, settings), EmbeddingsService(ENCODER, settings)).notices
        assert "BOTH HAVE 384 DIMENSIONS" in loud
        assert other == "a rollback would leave 300 rows without a vector"

    def test_by_the_swap(self, legacy, settings, caplog):
        with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
            result = fill_and_swap(Migration(legacy, settings))
        assert "BOTH HAVE 384 DIMENSIONS" in result.notices[0]
        assert "BOTH HAVE 384 DIMENSIONS" in caplog.text

    def test_without_a_promise_where_the_old_column_is_dropped(self, legacy, make_settings):
        (notice,) = fill_and_swap(Migration(legacy, make_settings(old_embedding="drop"))).notices
        assert "until retire" not in notice

    def test_and_not_at_all_where_the_dimensions_differ(self, migration, settings):
        service = EmbeddingsService(ENCODER, settings)
        assert plan(migration, service).notices == ()
        assert fill_and_swap(migration).notices == ()
