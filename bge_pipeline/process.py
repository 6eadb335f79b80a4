"""Which process this is, in words that another machine can compare, and whether a process of this machine lives."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil


def this_process() -> str:
    """This process: host, space of process numbers, number, and start, as numbers are used again."""
    process = psutil.Process()
    return f"{_place()}/{process.pid}/{process.create_time():.2f}"


def runs_here(name: str) -> bool:
    """Whether that process runs, or ran, where its number can be looked up from here."""
    return name.rsplit("/", 2)[0] == _place()


def is_gone(name: str) -> bool:
    """Whether that process ran here and has ended; one that runs elsewhere cannot be seen and is not said to be gone."""
    _, pid, created = name.rsplit("/", 2)
    if not runs_here(name):
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


def in_words(name: str) -> str:
    """The process as a person would name it: host and number."""
    place, pid, _ = name.rsplit("/", 2)
    return f"process {pid} on {place.rsplit('/', 1)[0]}"


def _place() -> str:
    numbers = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{numbers.stat().st_ino if numbers.exists() else 0}"
