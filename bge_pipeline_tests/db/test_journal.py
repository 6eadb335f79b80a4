"""A long journal: whoever looks at it again and again finds what is in all of it, and reads its end."""

from __future__ import annotations

import json
import random

import pytest

from bge_pipeline.database.heartbeat import read_workers
from bge_pipeline.database.journal import index_journal, last_backfill, read_journal, record
from bge_pipeline.database.movement import DoneReader, seconds_since_movement
from bge_pipeline.database.pause import read_pause
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline_tests.support import ENCODER, SEGMENTS, application, execute, scalar, statements_of

pytestmark = pytest.mark.pgvector

JOURNAL = "segments_embedding_journal"
ENTRIES = 20_000
"""A minute between one and the next."""
_OF_EVERY_ENTRY = f"""
SELECT extract(epoch FROM clock_timestamp() - max(at - make_interval(secs =>
  CASE WHEN act = 'worker' THEN coalesce((facts->>'still_seconds')::float, 0) ELSE 0 END)))::float
FROM {JOURNAL} WHERE act <> 'pause'
"""
_SUMS = f"""
SELECT sum((facts->>'rows')::bigint), sum((facts->>'in_page')::bigint), sum((facts->>'tokens')::bigint)
FROM {JOURNAL} WHERE act = 'worker'
"""


@pytest.fixture
def long(expanded):
    """A journal as years of runs leave it, one of which is still at work, and another was killed."""
    execute(
        expanded,
        f"INSERT INTO {JOURNAL} (act, at, facts) SELECT CASE n % 2 WHEN 0 THEN 'worker' ELSE 'backfill' END, "
        f"now() - ({ENTRIES} - n) * interval '1 minute', jsonb_build_object('process', 'host/1/' || n || '/1.0', "
        "'id_range', 'all', 'model', 'm', 'rows', 3, "
        "'in_page', 2, 'tokens', 30, 'rows_per_second', 1.0, 'still_seconds', 0.0, 'ended', true) "
        f"FROM generate_series(1, {ENTRIES}) n",
    )
    execute(
        expanded, f"UPDATE {JOURNAL} SET facts = facts || '{{\"ended\": false}}' WHERE number IN (1001, {ENTRIES - 19})"
    )
    execute(expanded, f"UPDATE {JOURNAL} SET at = now() WHERE number = {ENTRIES - 19}")
    execute(expanded, f"ANALYZE {JOURNAL}")
    return expanded


def looked_at(database, look):
    with database.autocommit() as connection:
        return look(connection)


def rows_read(database, look):
    """How many rows of the journal the statements of a look visit."""
    statements = [found for found in statements_of(database, look) if f'"{JOURNAL}"' in found[0]]
    with database.autocommit() as connection:
        plans = [
            connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).scalar_one()
            for statement, values in statements
        ]
    assert plans
    return sum(_visited(plan[0]["Plan"]) for plan in plans)


def _visited(node):
    below = sum(map(_visited, node.get("Plans", ())))
    if node.get("Relation Name") != JOURNAL:
        return below
    return below + node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))


@pytest.mark.parametrize(
    "look",
    [
        lambda connection: read_workers(connection, SEGMENTS),
        lambda connection: seconds_since_movement(connection, SEGMENTS),
        lambda connection: read_pause(connection, SEGMENTS),
        lambda connection: last_backfill(connection, SEGMENTS),
    ],
    ids=["workers", "movement", "pause", "last backfill"],
)
def test_a_look_reads_its_end(long, look):
    assert rows_read(long, look) < ENTRIES / 10


def test_what_all_have_done_is_read_once_and_then_from_its_end(long):
    done = DoneReader(SEGMENTS)
    assert rows_read(long, done.look) >= ENTRIES / 2
    assert rows_read(long, done.look) < ENTRIES / 10


@pytest.mark.parametrize("has_index", [True, False])
def test_it_finds_the_same_without_the_index(long, has_index):
    if not has_index:
        execute(long, f"DROP INDEX {SEGMENTS.journal_index}")
    (at_work,) = looked_at(long, lambda connection: read_workers(connection, SEGMENTS))
    assert at_work.process == f"host/1/{ENTRIES - 20}/1.0"
    assert looked_at(long, lambda connection: seconds_since_movement(connection, SEGMENTS)) < 60
    assert looked_at(long, lambda connection: read_pause(connection, SEGMENTS)) is None
    record(long, SEGMENTS, "pause", {"by": "anna"})
    assert looked_at(long, lambda connection: read_pause(connection, SEGMENTS)).by == "anna"
    assert looked_at(long, DoneReader(SEGMENTS).look) == {"rows": 30_000, "in_page": 20_000, "tokens": 300_000}


@pytest.mark.parametrize("seed", range(20))
def test_the_last_movement_is_that_of_every_entry(expanded, seed):
    """Of workers that overlap, stand still, are killed, or are of an earlier version that did not say since when."""
    chosen = random.Random(seed)
    seconds = sorted(chosen.randrange(100, 100_000) for _ in range(40))[::-1]
    for ago in seconds:
        act = chosen.choice(["worker", "worker", "worker", "backfill", "pause", "resume", "swap"])
        facts = {"process": "p", "id_range": "all", "model": "m", "rows": 0, "rows_per_second": 0}
        if act == "worker" and chosen.random() < 0.8:
            facts["still_seconds"] = chosen.randrange(50_000)
        last = chosen.randrange(ago + 1) if act == "worker" else ago
        execute(
            expanded,
            f"INSERT INTO {JOURNAL} (act, at, facts) VALUES (:act, now() - :ago * interval '1 second', CAST(:facts AS jsonb))",
            act=act,
            ago=last,
            facts=json.dumps(facts),
        )
    execute(expanded, f"DELETE FROM {JOURNAL} WHERE act = 'expand'")

    found = looked_at(expanded, lambda connection: seconds_since_movement(connection, SEGMENTS))

    assert found == pytest.approx(scalar(expanded, _OF_EVERY_ENTRY), abs=1.0)


def test_the_sums_follow_what_is_written_and_read_no_old_entry_again(long, migration):
    done = DoneReader(SEGMENTS)

    def sums():
        return tuple(looked_at(long, done.look).values())

    assert sums() == tuple(*execute(long, _SUMS))
    killed_comes_back = f"UPDATE {JOURNAL} SET facts = facts || '{{\"rows\": 70}}' WHERE number = 1001"
    new = f"INSERT INTO {JOURNAL} (act, facts) SELECT act, facts FROM {JOURNAL} WHERE number = {ENTRIES - 19}"
    ended = f'UPDATE {JOURNAL} SET facts = facts || \'{{"rows": 9, "ended": true}}\' WHERE number = {ENTRIES - 19}'
    for change in (killed_comes_back, new, ended):
        execute(long, change)
        assert sums() == tuple(*execute(long, _SUMS))
    execute(long, f"INSERT INTO {JOURNAL} (act, facts) SELECT 'backfill', '{{}}' FROM generate_series(1, 2000)")
    assert sums() == sums() == tuple(*execute(long, _SUMS))
    before = sums()
    execute(long, f"UPDATE {JOURNAL} SET facts = facts || '{{\"rows\": 1000000}}' WHERE number = 11")
    assert sums() == before
    collapse(migration)
    assert looked_at(long, done.look) == {}
    expand(migration, ENCODER.space)
    assert sums() == (0, 0, 0)


def test_an_entry_that_is_committed_late_is_summed(expanded):
    done = DoneReader(SEGMENTS)
    entry = f"INSERT INTO {JOURNAL} (act, facts) VALUES ('worker', '{{\"rows\": 5, \"ended\": true}}')"
    with application(expanded) as slow:
        slow.exec_driver_sql(entry)
        execute(expanded, entry)
        assert looked_at(expanded, done.look)["rows"] == 5
        slow.commit()
    assert looked_at(expanded, done.look)["rows"] == 10


def test_the_last_backfill_is_the_one_that_wrote(expanded):
    for facts in ({"rows": 3, "model": "a"}, {"rows": 2, "model": "b"}, {"rows": 0, "model": "a"}, {}):
        record(expanded, SEGMENTS, "backfill", facts)
    record(expanded, SEGMENTS, "swap", {"rows": 1})
    found = {
        model: looked_at(expanded, lambda connection, model=model: last_backfill(connection, SEGMENTS, model))
        for model in (None, "a", "c")
    }
    assert found[None].facts == {"rows": 2, "model": "b"}
    assert found["a"].facts == {"rows": 3, "model": "a"}
    assert found["c"] is None


def test_of_its_end_as_much_as_is_asked_for(expanded):
    record(expanded, SEGMENTS, "swap", {})
    execute(expanded, f"UPDATE {JOURNAL} SET at = now() - interval '1 hour' WHERE act = 'expand'")
    lately = looked_at(expanded, lambda connection: read_journal(connection, SEGMENTS, newest_seconds=900))
    assert [entry.act for entry in lately] == ["swap"]


class TestAnEarlierJournal:
    @pytest.fixture
    def earlier(self, expanded):
        execute(expanded, f"DROP INDEX {SEGMENTS.journal_index}")
        return expanded

    def has_index(self, database):
        return scalar(database, f"SELECT count(*) FROM pg_indexes WHERE tablename = '{JOURNAL}'") == 2

    def test_gets_its_index_when_expand_is_repeated(self, earlier, migration):
        assert not self.has_index(earlier)
        expand(migration, ENCODER.space)
        assert self.has_index(earlier)

    def test_is_not_waited_for(self, earlier):
        with application(earlier) as busy:
            busy.exec_driver_sql(f"LOCK TABLE {JOURNAL} IN ROW EXCLUSIVE MODE")
            index_journal(earlier, SEGMENTS, lock_timeout_ms=50)
            assert not self.has_index(earlier)
        index_journal(earlier, SEGMENTS, lock_timeout_ms=50)
        assert self.has_index(earlier)
