"""A minute of chaos: one seed a road; `make chaos` plays many, with new seeds each time."""

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline_tests.chaos.application import Row
from bge_pipeline_tests.chaos.scenario import FAULTS, PATTERNS, ROADS, STATEMENTS, Scenario
from bge_pipeline_tests.chaos.truth import faults_of
from bge_pipeline_tests.support import execute, fill_and_swap

pytestmark = pytest.mark.pgvector


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(16, id="command, HNSW, three kills"),
        pytest.param(18, id="command, two operators, there and back", marks=pytest.mark.thorough),
        pytest.param(20, id="Alembic, the server goes down", marks=pytest.mark.thorough),
        pytest.param(23, id="Dagster, two kills", marks=pytest.mark.thorough),
    ],
)
def test_whatever_meets_a_migration_no_row_and_no_vector_is_wrong_at_its_end(chaos, seed):
    played = chaos.play(Scenario.from_seed(seed))
    assert played.wrong == [], played
    assert played.writes > 0
    assert played.reads > 0


def test_a_seed_is_the_same_scenario_each_time_and_seeds_differ():
    assert Scenario.from_seed(7) == Scenario.from_seed(7)
    drawn = [Scenario.from_seed(seed) for seed in range(300)]
    assert len({str(scenario) for scenario in drawn}) == 300
    faults = [(act.name, fault) for scenario in drawn for act in scenario.acts for fault in act.faults]
    assert {scenario.road for scenario in drawn} == set(ROADS)
    assert {fault.kind for _, fault in faults} == set(FAULTS)
    assert {(act, fault.statement) for act, fault in faults if fault.statement} == {
        (act, statement) for act, statements in STATEMENTS.items() for statement in statements
    }
    assert {fault.statement for _, fault in faults} - {None} == set(PATTERNS)


def test_the_judge_sees_what_is_wrong(database, migration):
    """Each finding, on a table in which there is one."""
    execute(database, "DROP TABLE segments, sources CASCADE")
    execute(database, "CREATE TABLE segments (id bigint PRIMARY KEY, text text, label text, embedding vector(32))")
    execute(database, "INSERT INTO segments SELECT n, 'text ' || n, 'x' FROM generate_series(1, 20) n")
    execute(database, "INSERT INTO segments VALUES (21, ' ', 'x')")
    old = {n: "[" + ",".join(["1"] * 32) + "]" for n in range(1, 21)}
    execute(database, "UPDATE segments SET embedding = :old WHERE id < 21", old=old[1])
    fill_and_swap(migration)
    ledger = {n: Row(f"text {n}", "x") for n in range(1, 21)} | {21: Row(" ", "x")}

    database.close()
    judge = Database(database.url, application_name="judge")

    def found():
        return faults_of(judge, ledger, old, "ivfflat", retired=False)

    assert found() == []
    execute(judge, "UPDATE segments SET embedding_32 = NULL WHERE id = 3")
    assert found() == ["row 3 has lost its old vector, and its text is what it was"]
    old.pop(3)
    execute(judge, "UPDATE segments s SET embedding = o.embedding FROM segments o WHERE s.id = 4 AND o.id = 5")
    assert found() == ["row 4 has another text's vector"]
    execute(judge, "UPDATE segments SET embedding = NULL WHERE id = 4")
    assert found() == ["row 4 has no vector"]
    execute(judge, "DELETE FROM segments WHERE id = 4")
    assert found()[0] == "row 4 is None, and Row(text='text 4', label='x') was committed"
    ledger.pop(4)
    old.pop(4)
    execute(judge, "CREATE TABLE leftover ()")
    assert found() == ["left behind: ['leftover']"]
    execute(judge, "DROP TABLE leftover")
    execute(judge, "UPDATE pg_index SET indisvalid = false WHERE indexrelid::regclass::text ~ 'ivfflat'")
    assert found()[0].endswith("is invalid")
    judge.close()
