"""Which process this is, in words that another machine can compare, and whether a process of this machine lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

_START_TIME = 19
"""Place of `starttime` behind the name in /proc/PID/stat: proc(5)."""


def this_process() -> str:
    """This process: host, space of process numbers, number, and start, as numbers are used again."""
    return f"{_place()}/{os.getpid()}/{_start_of(os.getpid())}"


def runs_here(name: str) -> bool:
    """Whether that process runs, or ran, where its number can be looked up from here."""
    return name.rsplit("/", 2)[0] == _place()


def is_gone(name: str) -> bool:
    """Whether that process ran here and has ended; one that runs elsewhere cannot be seen and is not said to be gone."""
    _, pid, created = name.rsplit("/", 2)
    if not runs_here(name):
        return False
    try:
        return _start_of(int(pid)) != created
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True


def in_words(name: str) -> str:
    """The process as a person would name it: host and number."""
    place, pid, _ = name.rsplit("/", 2)
    return f"process {pid} on {place.rsplit('/', 1)[0]}"


def _start_of(pid: int) -> str:
    """When a process began: in ticks since the machine started where /proc has them, as the clock may be set meanwhile.

    Raises:
        FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess: there is none of that number.
    """
    if not Path("/proc/self/stat").exists():
        return f"{psutil.Process(pid).create_time():.2f}"
    behind_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
    return behind_name.split()[_START_TIME]


def _place() -> str:
    numbers = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{numbers.stat().st_ino if numbers.exists() else 0}"
