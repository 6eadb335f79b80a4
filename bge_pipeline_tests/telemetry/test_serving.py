"""Metrics are scraped while real processes work, each on a port of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from psycopg2.extras import PhysicalReplicationConnection
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import EmbeddingSpaceMismatch, LockNotAcquired
from bge_pipeline.phases import table_metrics
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.pause import pause
from bge_pipeline.phases.table_metrics import AllTables, TableMetrics
from bge_pipeline.telemetry import looking
from bge_pipeline.telemetry.metrics import REGISTRY
from bge_pipeline.telemetry.serving import serving_metrics
from bge_pipeline_tests.support import (
    ENCODER,
    application,
    as_it_stands,
    execute,
    fill,
    put_in_quarantine,
    scalar,
    statements_run_by,
    wait_until,
)
from bge_pipeline_tests.telemetry.conftest import parsed, scrape, total

pytestmark = pytest.mark.pgvector


def rows(port):
    return total(scrape(port), "bge_pipeline_rows_total")


def test_a_backfill_is_scraped_while_it_runs(slow, start, port):
    process = start("backfill", METRICS_PORT=str(port))
    wait_until(lambda: rows(port) > 20, 60)
    first, written = scrape(port), scalar(slow, "SELECT count(embedding_384) FROM segments")
    of_column = (("column", "embedding_384"), ("table", '"public"."segments"'))
    table = of_column[1:]
    assert 20 < first["bge_pipeline_rows_total", of_column] <= written
    assert 0 <= first["bge_pipeline_rows_in_page_total", of_column] <= first["bge_pipeline_rows_total", of_column]
    assert first["bge_pipeline_tokens_total", of_column] > 0
    assert first["bge_pipeline_backfill_rows_per_second", table] > 0
    assert 0 < first["bge_pipeline_backfill_rows_left", table] < 300
    assert first["bge_pipeline_commit_seconds_count", ()] > 0
    assert first["bge_pipeline_phases_under_way", (("phase", "backfill"),)] == 1
    assert total(first, "bge_pipeline_stage_seconds_total") > 0
    assert first["process_resident_memory_bytes", ()] > 0
    wait_until(lambda: rows(port) > first["bge_pipeline_rows_total", of_column], 60)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert scrape(port) == {}


@pytest.mark.thorough
def test_a_second_process_takes_the_next_port_and_both_are_found(slow, start, settings, port):
    folder = settings.home / "metrics"
    processes = [start("backfill", METRICS_PORT=str(port))]
    wait_until(lambda: rows(port) > 0, 60)
    processes.append(start("backfill", METRICS_PORT=str(port)))
    wait_until(lambda: len(list(folder.glob("*.json"))) == 2, 60)
    targets = sorted(json.loads(path.read_text())[0]["targets"][0] for path in folder.glob("*.json"))
    ports = [int(target.removeprefix("127.0.0.1:")) for target in targets]
    assert ports[0] == port < ports[1]
    assert all(scrape(found) for found in ports)

    processes[0].kill()
    processes[0].wait()
    said = processes[1].communicate(timeout=60)[1]
    assert f"http://127.0.0.1:{ports[1]}/metrics" in re.sub(r"\s+", "", said)
    # What the killed one left goes when the next one begins.
    assert [path.name.rpartition("-")[2] for path in folder.glob("*.json")] == [f"{port}.json"]
    with serving_metrics("127.0.0.1", 0, settings.home):
        assert len(list(folder.glob("*.json"))) == 1
    assert list(folder.glob("*.json")) == []


def test_a_port_that_cannot_be_had_stops_no_work(tmp_path, caplog):
    with serving_metrics("203.0.113.7", 9_464, tmp_path) as port:
        assert port is None
    assert "metrics are not served: cannot listen on 203.0.113.7:9464" in caplog.text


def test_a_block_within_another_serves_nothing_more(tmp_path):
    with serving_metrics("127.0.0.1", 0, tmp_path) as outer, serving_metrics("127.0.0.1", 0, tmp_path) as inner:
        assert inner is None
        assert scrape(outer)


def test_it_listens_on_the_loopback_address_unless_told_otherwise(tmp_path, settings):
    assert settings.metrics_host == "127.0.0.1"
    assert settings.metrics_port is None
    with serving_metrics("0.0.0.0", 0, tmp_path) as port:
        (path,) = (tmp_path / "metrics").iterdir()
        assert json.loads(path.read_text())[0]["targets"] == [f"{socket.gethostname()}:{port}"]


@pytest.mark.usefixtures("slow")
def test_an_error_is_counted_with_the_phase_that_it_ended(migration):
    labels = {"phase": "backfill", "error": "EmbeddingSpaceMismatch"}
    before = REGISTRY.get_sample_value("bge_pipeline_errors_total", labels) or 0
    with pytest.raises(EmbeddingSpaceMismatch):
        backfill(migration, HashingEncoder(dimensions=128))
    assert REGISTRY.get_sample_value("bge_pipeline_errors_total", labels) == before + 1


def test_a_busy_table_is_counted_as_lock_conflicts(database, migration, settings):
    def value(name):
        return REGISTRY.get_sample_value(name)

    conflicts, seconds = value("bge_pipeline_lock_conflicts_total"), value("bge_pipeline_lock_wait_seconds_total")
    with application(database) as busy:
        busy.execute(text("LOCK TABLE segments IN ACCESS SHARE MODE"))
        with pytest.raises(LockNotAcquired):
            expand(migration, ENCODER.space)
    assert value("bge_pipeline_lock_conflicts_total") == conflicts + settings.lock_max_attempts
    waited = settings.lock_timeout_ms / 1_000 * (settings.lock_max_attempts - 1)
    assert value("bge_pipeline_lock_wait_seconds_total") - seconds > waited


def test_the_command_says_why_it_serves_nothing(start):
    with socket.create_server(("127.0.0.1", 65_535)):
        for variables, reason in (
            ({"METRICS_HOST": "203.0.113.7"}, "cannot listen on 203.0.113.7:9464: Cannot assign requested address"),
            ({"METRICS_HOST": "a..b"}, "cannot listen on a..b:9464: encoding with"),
            ({"METRICS_PORT": "65535"}, "no port from 65535 to 65535 is free on 127.0.0.1"),
        ):
            exporter = start("metrics", **variables)
            said = " ".join(exporter.communicate(timeout=60)[1].split())
            assert exporter.returncode == 2
            assert reason in said
            assert ("is free" in said) == ("METRICS_PORT" in variables)


def served(*migrations):
    """What Prometheus reads of one table, or of several in one process."""
    tables, registry = [TableMetrics(migration) for migration in migrations], CollectorRegistry()
    registry.register(tables[0] if len(tables) == 1 else AllTables(tables))
    for table in tables:
        table.look()
    return generate_latest(registry).decode()


def looked_at(*migrations):
    """The same by name and labels."""
    return parsed(served(*migrations))


def labels(migration, **more):
    """Those of a table's series, in order."""
    found = {"database": migration.database.place, "table": '"public"."segments"', "column": "embedding"}
    return tuple(sorted((found | more).items()))


class TestTheTable:
    @pytest.mark.thorough
    @pytest.mark.usefixtures("slow")
    def test_what_the_database_knows_is_served_beside_the_workers(self, start, port, migration):
        exporter = start("metrics", METRICS_PORT=str(port))
        wait_until(lambda: total(scrape(port), "bge_pipeline_table_readable") == 1, 60)
        found = scrape(port)
        assert found["bge_pipeline_table_pending_rows", labels(migration)] == 300
        assert found["bge_pipeline_table_workers", labels(migration, state="working")] == 0
        assert found["bge_pipeline_table_phase", labels(migration, phase="expanded")] == 1
        assert total(found, "bge_pipeline_table_phase") == 1
        assert found["bge_pipeline_table_still_seconds", labels(migration)] >= 0
        exporter.send_signal(signal.SIGTERM)
        exporter.communicate(timeout=60)
        assert exporter.returncode == 0

    def test_a_table_that_is_locked_is_not_waited_for(self, start, database):
        with application(database) as busy:
            busy.execute(text("LOCK TABLE segments IN ACCESS EXCLUSIVE MODE"))
            printed, _ = start("metrics", "--once").communicate(timeout=40)
        found = parsed(printed)
        assert total(found, "bge_pipeline_table_readable") == 0
        assert 2 < total(found, "bge_pipeline_table_look_seconds") < 20

    def test_the_end_does_not_wait_for_a_look_that_hangs(self, migration, monkeypatch):
        released = threading.Event()
        monkeypatch.setattr(looking, "_JOIN_SECONDS", 0.1)
        monkeypatch.setattr(TableMetrics, "find", lambda _: [released.wait(30)] * 0)
        started = time.monotonic()
        with TableMetrics(migration).keeping_up():
            pass
        assert time.monotonic() - started < 10
        released.set()

    def test_rows_and_tokens_of_processes_that_have_ended_are_known(self, migration):
        fill(migration)
        found = looked_at(migration)
        assert total(found, "bge_pipeline_table_rows_written_total") == 300
        assert total(found, "bge_pipeline_table_tokens_read_total") > 300
        assert total(found, "bge_pipeline_table_pending_rows") == 0
        assert total(found, "bge_pipeline_table_updates_total") >= 300

    def test_a_pause_and_quarantined_rows_are_told(self, database, migration):
        expand(migration, ENCODER.space)
        pause(migration)
        put_in_quarantine(database, 1, 2)
        found = looked_at(migration)
        assert total(found, "bge_pipeline_table_paused") == 1
        assert total(found, "bge_pipeline_table_quarantined_rows") == 2
        assert total(found, "bge_pipeline_table_pending_rows") == 298

    def test_sessions_that_wait_for_a_lock_are_counted(self, database, migration):
        with application(database) as holder, application(database) as waiter, ThreadPoolExecutor() as threads:
            holder.execute(text("LOCK TABLE segments IN SHARE MODE"))
            waiting = threads.submit(waiter.execute, text("UPDATE segments SET text = text WHERE id = 1"))
            wait_until(lambda: total(looked_at(migration), "bge_pipeline_table_waiting_sessions") == 1)
            assert total(looked_at(migration), "bge_pipeline_table_longest_wait_seconds") > 0
            holder.rollback()
            waiting.result(30)
        assert total(looked_at(migration), "bge_pipeline_table_waiting_sessions") == 0

    def test_a_large_table_is_estimated_while_its_bulk_is_pending(self, database, migration, monkeypatch):
        expand(migration, ENCODER.space)
        monkeypatch.setattr(table_metrics, "_COUNTED_ROWS", 100)
        as_it_stands(database, "ANALYZE segments")
        statements = statements_run_by(lambda: looked_at(migration))
        assert any("TABLESAMPLE SYSTEM (1)" in statement for statement in statements)

    def test_a_database_that_is_away_is_told(self, start):
        printed, said = start("metrics", "--once", DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x").communicate()
        assert total(parsed(printed), "bge_pipeline_table_readable") == 0
        assert "hunter2" not in printed + said


class TestSeveralTables:
    def test_one_of_the_same_name_elsewhere_and_a_second_column_have_series_of_their_own(
        self, database, migration, make_settings, new_database_url
    ):
        execute(database, "ALTER TABLE segments ADD COLUMN other vector(3)")
        second = Migration(database, make_settings(target_embedding_column="other"))
        with Database(new_database_url()) as elsewhere:
            third = Migration(elsewhere, make_settings(database_url=elsewhere.url.render_as_string(False)))
            expand(third, ENCODER.space)
            execute(elsewhere, "DELETE FROM segments WHERE id > 200")
            pause(third)
            expand(second, ENCODER.space)

            found = looked_at(migration, second, third)

        column = labels(second, column="other")
        assert [found["bge_pipeline_table_readable", key] for key in (labels(migration), column, labels(third))] == [
            1
        ] * 3
        pending = {key: value for (name, key), value in found.items() if name == "bge_pipeline_table_pending_rows"}
        assert pending == {column: 300, labels(third): 200}
        paused = {key: value for (name, key), value in found.items() if name == "bge_pipeline_table_paused"}
        assert paused == {labels(migration): 0, column: 0, labels(third): 1}
        assert found["bge_pipeline_table_phase", labels(migration, phase="legacy")] == 1

    def test_of_standbys_of_one_name_the_farthest_behind_is_told_once(self, database, migration):
        with standby(database, behind=50_000), standby(database, behind=10):
            wait_until(lambda: scalar(database, "SELECT count(replay_lsn) FROM pg_stat_replication") >= 2)
            for migrations in ([migration], [migration, migration]):
                lines = re.findall(
                    r"^bge_pipeline_replication_lag_bytes{.*walreceiver.*} (.*)$", served(*migrations), re.M
                )
                assert [float(line) > 49_000 for line in lines] == [True]


@contextmanager
def standby(database, behind):
    """One that has replayed the log but for so many bytes, under the name that every standby has unless it is told otherwise."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    flushed = int(scalar(database, "SELECT pg_current_wal_flush_lsn() - CAST('0/0' AS pg_lsn)"))
    connection = psycopg2.connect(url, connection_factory=PhysicalReplicationConnection, application_name="walreceiver")
    with closing(connection), connection.cursor() as cursor:
        cursor.start_replication(start_lsn=flushed)
        cursor.send_feedback(*[flushed - behind] * 3, force=True)
        yield
