"""An operator that is stopped at a named statement, as by a machine that sleeps: nobody waits for it to wake."""

import pytest

from bge_pipeline_tests.chaos.scenario import Act, Fault, Scenario

pytestmark = [pytest.mark.pgvector, pytest.mark.slow]

SLEEP_SECONDS = 14
PATIENCE_SECONDS = 9
"""The longest that a session may be silent under a lock, the writers' pause, and time for a busy machine."""


@pytest.mark.parametrize(
    ("act", "statement"),
    [
        pytest.param("migrate", "RENAME", id="in the exchange"),
        pytest.param("retire", "DROP COLUMN", id="in retire", marks=pytest.mark.thorough),
        pytest.param("migrate", "ADD COLUMN", id="in expand", marks=pytest.mark.thorough),
        pytest.param("migrate", "UPDATE", id="in the backfill", marks=pytest.mark.thorough),
        pytest.param("migrate", "CREATE INDEX", id="as an index is built", marks=pytest.mark.thorough),
        pytest.param("rollback", "RENAME", id="in the rollback", marks=pytest.mark.thorough),
    ],
)
def test_the_application_does_not_wait_until_the_operator_wakes(chaos, act, statement):
    fault = Fault("freeze", statement, frozen_seconds=SLEEP_SECONDS)
    before = () if act == "migrate" else (Act("migrate", ()),)
    after = (Act("migrate", ()),) if act == "rollback" else ()
    scenario = Scenario(1, "command", "hnsw", 1, 300, (*before, Act(act, (fault,)), *after))

    played = chaos.play(scenario)

    assert played.wrong == []
    assert played.faults == {("freeze", statement): 1}
    assert played.longest_write_seconds < PATIENCE_SECONDS < SLEEP_SECONDS
    assert played.longest_read_seconds < PATIENCE_SECONDS
