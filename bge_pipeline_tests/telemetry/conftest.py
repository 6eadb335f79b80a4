"""Fixtures of what is told of a process at work: real processes on a table that takes its time."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import starting_commands
from bge_pipeline_tests.support import ENCODER, make_writes_slow

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def slow(migration: Migration) -> Database:
    """A table in phase expanded whose 300 rows take three seconds to write."""
    expand(migration, ENCODER.space)
    make_writes_slow(migration.database, 0.01)
    return migration.database


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts a command; whatever is left of it ends with the test."""
    with starting_commands(settings, tmp_path) as begin:
        yield begin


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
