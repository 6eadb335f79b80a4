"""What is told of phases: which is on, how far it is, how long it took, and where it was stopped."""

from __future__ import annotations

import logging

import pytest

from bge_pipeline.database.build_progress import BuildProgress
from bge_pipeline.phase_line import PhaseLine, phase_line
from bge_pipeline.phases.backfill import BackfillProgress


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("bge_pipeline"), "propagate", True)
    caplog.set_level(logging.INFO, logger="bge_pipeline")
    return caplog


def test_one_phase_is_on_and_the_next_ends_it(log: pytest.LogCaptureFixture) -> None:
    with phase_line() as line:
        line.step("expand")
        line.backfill(BackfillProgress(5, 10, 2.0))
        line.backfill(BackfillProgress(10, 10, 2.0))
        line.index(BuildProgress("loading tuples", 0.25, "process 7"))

    assert log.messages == [
        "expand: begins",
        "expand: done in under 0.1 s",
        "backfill: begins",
        "backfill: 5 of 10 rows, 2 rows/s, 2.0 s left",
        "backfill: 10 of 10 rows, 5 rows/s",
        "backfill: done in under 0.1 s",
        "index: begins",
        "index: loading tuples, 25%, waits for process 7",
        "index: done in under 0.1 s",
    ]


def test_the_progress_of_a_build_is_that_of_the_index_that_was_named(log: pytest.LogCaptureFixture) -> None:
    with phase_line() as line:
        line.step("index notes_embedding_idx")
        line.index(BuildProgress("initializing", None))

    assert log.messages[0] == "index notes_embedding_idx: begins"
    assert log.messages[-1].startswith("index notes_embedding_idx: done in")


def test_a_phase_that_fails_is_not_called_done(log: pytest.LogCaptureFixture) -> None:
    def refused(line: PhaseLine) -> None:
        line.step("quality gate")
        raise RuntimeError

    with pytest.raises(RuntimeError), phase_line() as line:
        refused(line)

    assert log.messages[-1].startswith("quality gate: stopped after")


def test_nothing_is_told_of_nothing(log: pytest.LogCaptureFixture) -> None:
    with phase_line():
        pass

    assert log.messages == []
