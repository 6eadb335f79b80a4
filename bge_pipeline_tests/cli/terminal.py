"""A terminal of a given width, in front of which a command runs: what stands on its screen at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

_LINES = 400
"""So many that nothing scrolls out of sight."""
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Screen:
    """What a command left.

    Attributes:
        text: the lines, without the blanks behind them.
        colors: names of the foreground colours on it.
        exit_code: of the command.
    """

    text: str
    colors: frozenset[str]
    exit_code: int


def on_terminal(command: Sequence[str], columns: int, environment: Mapping[str, str], folder: Path) -> Screen:
    """Run a command whose input, output and errors are one terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=dict(environment), start_new_session=True
    )
    os.close(theirs)
    screen = pyte.Screen(columns, _LINES)
    stream = pyte.ByteStream(screen)
    while written := _read(ours):
        stream.feed(written)
    os.close(ours)
    lines = "\n".join(line.rstrip() for line in screen.display).rstrip("\n")
    colors = {cell.fg for line in screen.buffer.values() for cell in line.values()} - {"default"}
    return Screen(lines + "\n", frozenset(colors), process.wait(_TIMEOUT_SECONDS))


def in_pipe(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Screen:
    """Run a command that nobody watches: what it writes to its output, then what it writes to its errors."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder, env=dict(environment),
        timeout=_TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    return Screen(done.stdout + done.stderr, frozenset(), done.returncode)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux says so that the other end is closed
        return b""
