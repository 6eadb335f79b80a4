"""Until: a backfill that is to go so far goes so far, to the row, and no column is exchanged."""

from __future__ import annotations

import pytest

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.phases.until import Until
from bge_pipeline_tests.support import execute, pending_ids


@pytest.mark.parametrize(
    ("words", "missing"),
    [("50%", 150), ("12.5 %", 38), ("100%", 300), ("0%", 0), ("20", 20), ("5000", 5_000), ("0", 0)],
)
def test_a_share_or_a_number_of_rows(words, missing):
    assert Until.parse(words).missing_rows(embedded=0, pending=300) == missing


def test_rows_that_have_a_vector_count():
    assert Until.parse("50%").missing_rows(embedded=100, pending=200) == 50
    assert Until.parse("50%").missing_rows(embedded=200, pending=100) == 0


@pytest.mark.parametrize("words", ["half", "101%", "-5", "", "5e3", "50 % of it"])
def test_anything_else_is_refused(words):
    with pytest.raises(ConfigurationError, match="such as 50%"):
        Until.parse(words)


@pytest.mark.pgvector
def test_a_migration_goes_so_far_step_by_step_and_then_to_its_end(database, make_settings):
    settings = make_settings(backfill_batch_rows=40, quality_gate="off")

    def run(words):
        with open_service(Migration(database, settings)) as service:
            return migrate(Migration(database, settings), service, until=Until.parse(words) if words else None)

    for words, rows, left in (("10%", 30, 270), ("10%", 0, 270), ("175", 145, 125), ("100%", 125, 0)):
        result = run(words)
        assert (result.backfill.rows, result.swap) == (rows, None)
        assert result.as_metadata()["swap"] is None
        assert len(pending_ids(database)) == left
        assert require_table(Migration(database, settings)).phase == ("expanded" if left else "backfilled")
    assert run(None).swap.exchanged


@pytest.mark.pgvector
def test_rows_in_quarantine_and_without_text_are_no_part_of_a_share(database, make_settings):
    settings = make_settings(quality_gate="off")
    execute(database, "UPDATE segments SET text = ' ' WHERE id <= 100")
    with open_service(Migration(database, settings)) as service:
        assert migrate(Migration(database, settings), service, until=Until.parse("50%")).backfill.rows == 100
