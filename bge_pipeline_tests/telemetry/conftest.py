"""Fixtures of what is told of a process at work: real processes on a table that takes its time."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import environment
from bge_pipeline_tests.support import ENCODER, execute

SLOW_WRITES = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
CREATE TRIGGER dawdle BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION dawdle()
"""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def slow(migration: Migration) -> Database:
    """A table in phase expanded whose 300 rows take three seconds to write."""
    expand(migration, ENCODER.space)
    execute(migration.database, SLOW_WRITES)
    return migration.database


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts a command; whatever is left of it ends with the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bge_pipeline", *arguments],
            env=environment(settings, **{"QUALITY_GATE": "off", "BACKFILL_BATCH_ROWS": "10"} | variables),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def scrape(port: int) -> Samples:
    """What Prometheus would read there; nothing where nobody listens yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return parsed(answer.read().decode())
    except OSError:
        return {}


def parsed(exposition: str) -> Samples:
    """The samples by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def total(samples: Samples, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(value for (found, _), value in samples.items() if found == name)
