"""The pace of a backfill: it waits while a brake holds, says so once, sums the seconds, and ends when it is told to."""

from __future__ import annotations

import logging
import threading

import pytest

from bge_pipeline.phases.brakes import RateBrake
from bge_pipeline.phases.pace import Pace
from bge_pipeline.phases.stopping import StopRequest


class Holds:
    """A brake that holds for so many looks."""

    reason = "fake"

    def __init__(self, looks=0):
        self.words, self.looks, self.calls = None, looks, []

    def begin(self):
        self.calls.append("begin")

    def end(self):
        self.calls.append("end")

    def seconds_left(self, _rows, _waited):
        self.looks -= 1
        self.words = "the brake is on" if self.looks > 0 else None
        return 0.001 if self.words else 0.0


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "bge_pipeline")
    return caplog


def test_without_brakes_and_goal_a_backfill_goes_on_until_it_is_stopped():
    stop = threading.Event()
    pace = Pace(stop)
    with pace.running(lambda: None):
        assert pace.claim(1_000) == 1_000
        pace.between_batches(1_000)
        assert not pace.is_over
        stop.set()
        assert (pace.is_over, pace.claim(1_000)) == (True, 0)
    assert pace.held_seconds == {}


def test_a_brake_is_waited_for_told_once_and_summed(log):
    brake, reports = Holds(), []
    pace = Pace(threading.Event(), [brake])
    with pace.running(lambda: reports.append(pace.words)):
        brake.looks = 4
        pace.between_batches(10)
    assert brake.calls == ["begin", "end"]
    assert reports == ["the brake is on"] * 3
    assert pace.held_seconds["fake"] > 0
    assert [line for line in log.messages if "held back: the brake is on" in line] == [log.messages[0]]
    assert [line for line in log.messages if "goes on" in line] == [log.messages[1]]
    assert log.messages[2].startswith("the backfill was held back: fake")


def test_a_brake_holds_before_the_first_batch_too():
    brake, reports = Holds(3), []
    with Pace(threading.Event(), [brake]).running(lambda: reports.append(1)):
        assert len(reports) == 2


def test_a_stop_ends_a_wait_at_once():
    stop, brake = threading.Event(), Holds(10**9)
    brake.seconds_left = lambda *_: 600.0
    threading.Timer(0.1, stop.set).start()
    with Pace(stop, [brake]).running(lambda: None):
        pass
    assert brake.calls == ["begin", "end"]


def test_brakes_end_whatever_ends_the_backfill():
    brake = Holds()
    with pytest.raises(KeyboardInterrupt), Pace(threading.Event(), [brake]).running(lambda: None):
        raise KeyboardInterrupt
    assert brake.calls == ["begin", "end"]


def test_a_goal_is_met_to_the_row_and_rows_that_were_not_written_are_claimed_again():
    pace = Pace(threading.Event(), goal_rows=25)
    pace.begin_pass()
    assert [pace.claim(10), pace.claim(10), pace.claim(10), pace.claim(10)] == [10, 10, 5, 0]
    for rows in (10, 8, 5):  # two rows were locked
        pace.between_batches(rows)
    assert not pace.is_over
    pace.begin_pass()
    assert [pace.claim(10), pace.claim(10)] == [2, 0]
    pace.between_batches(2)
    assert pace.is_over


def test_what_two_stages_wait_for_at_once_is_counted_once():
    reports, pace = [], Pace(threading.Event())
    with pace.running(lambda: reports.append(pace.words)):
        threads = [threading.Thread(target=pace.hold, args=("locked", "a lock")) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert reports == ["a lock"]
    assert pace.held_seconds["locked"] < 1.5


def test_few_rows_a_second_come_in_small_batches():
    assert Pace(threading.Event(), max_batch_rows=50).batch_rows(1_000) == 50
    assert Pace(threading.Event(), max_batch_rows=5_000).batch_rows(1_000) == 1_000
    assert Pace(threading.Event()).batch_rows(1_000) == 1_000


def test_a_request_to_stop_knows_whether_it_is_heeded():
    stop = StopRequest()
    with Pace(stop).running(lambda: None):
        assert stop.is_heeded
    assert not stop.is_heeded


class TestRate:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("bge_pipeline.phases.brakes.time.monotonic", lambda: now[0])
        return now

    def test_each_batch_is_given_the_time_of_its_rows(self, clock):
        brake = RateBrake(100)
        brake.begin()
        clock[0] += 0.2
        assert brake.seconds_left(50, 0.0) == pytest.approx(0.3)
        assert "100 rows/s" in brake.words
        clock[0] += 0.3
        assert brake.seconds_left(0, 0.3) <= 0
        assert brake.words is None, "nothing that comes later is its doing"
        assert brake.seconds_left(50, 0.0) == pytest.approx(0.5)

    def test_it_is_told_once_although_it_lets_go_after_each_batch(self, log):
        pace = Pace(threading.Event(), [RateBrake(1_000)])
        with pace.running(lambda: None):
            for _ in range(3):
                pace.between_batches(20)
                assert pace.words is None
            assert [line for line in log.messages if "1,000 rows/s" in line] == log.messages
            assert len(log.messages) == 1

    def test_a_backfill_that_is_slower_is_not_held(self, clock):
        brake = RateBrake(100)
        brake.begin()
        for _ in range(5):
            clock[0] += 1.0
            assert brake.seconds_left(50, 0.0) <= 0
        assert brake.words is None

    def test_a_long_standstill_is_not_made_up_for(self, clock):
        brake = RateBrake(100)
        brake.begin()
        clock[0] += 3_600
        assert brake.seconds_left(200, 0.0) == pytest.approx(1.0)
