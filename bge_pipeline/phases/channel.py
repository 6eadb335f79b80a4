"""A bounded queue between two stages that ends with its producers and can be abandoned by anybody."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Abandoned(Exception):
    """The pipeline was given up while a stage waited."""


class Channel(Generic[Item]):
    """Hands items from a known number of producers to any number of consumers; at most `size` wait."""

    def __init__(self, size: int, producers: int) -> None:
        self._items: deque[Item] = deque()
        self._size = size
        self._producers = producers
        self._abandoned = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Wait for room and leave an item.

        Raises:
            Abandoned: the pipeline was given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._size or self._abandoned)
            if self._abandoned:
                raise Abandoned
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that one producer has no more items."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def abandon(self) -> None:
        """Wake every stage that waits and let it end."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._producers == 0 or self._abandoned)
                if self._abandoned:
                    raise Abandoned
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
