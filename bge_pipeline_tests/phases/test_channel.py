"""A channel hands items on in order, holds few of them, ends with its producers and lets nobody wait for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bge_pipeline.phases.channel import Abandoned, Channel


def produce(channel, items):
    try:
        for item in items:
            channel.put(item)
    finally:
        channel.close()


def test_items_arrive_in_order_and_the_end_comes_after_them():
    channel = Channel(size=2, producers=1)
    with ThreadPoolExecutor() as pool:
        pool.submit(produce, channel, range(100))
        assert list(channel) == list(range(100))


def test_the_end_comes_with_the_last_of_several_producers_and_nothing_is_lost():
    channel = Channel(size=3, producers=4)
    with ThreadPoolExecutor(8) as pool:
        for first in range(0, 400, 100):
            pool.submit(produce, channel, range(first, first + 100))
        consumers = [pool.submit(list, channel) for _ in range(3)]
        assert sorted(item for consumer in consumers for item in consumer.result()) == list(range(400))


def test_no_more_than_its_size_waits():
    channel, put = Channel(size=2, producers=1), []

    def fill():
        for item in range(5):
            channel.put(item)
            put.append(item)
        channel.close()

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(0.1)
    assert put == [0, 1]
    assert list(channel) == [0, 1, 2, 3, 4]
    thread.join()


@pytest.mark.parametrize("stuck", ["a producer", "a consumer"])
def test_an_abandoned_channel_wakes_whoever_waits(stuck):
    channel = Channel(size=1, producers=1)
    channel.put("first")
    consumer = iter(channel)
    if stuck == "a consumer":
        next(consumer)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(channel.put, "second") if stuck == "a producer" else pool.submit(next, consumer)
        channel.abandon()
        assert isinstance(waiting.exception(timeout=5), Abandoned)


def test_an_abandoned_channel_takes_and_gives_nothing():
    channel = Channel(size=5, producers=1)
    channel.put("left behind")
    channel.abandon()
    with pytest.raises(Abandoned):
        channel.put("another")
    with pytest.raises(Abandoned):
        next(iter(channel))
