"""SIGTERM: what a supervisor sends ends a command after the batch in hand, with a message and an exit code of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bge_pipeline.console import stderr
from bge_pipeline.errors import Stopped
from bge_pipeline.phases.stopping import StopRequest


class Terminated(BaseException):
    """SIGTERM arrived where nothing ends by itself soon; like KeyboardInterrupt it passes every `except Exception`."""


@contextmanager
def stopping_on_sigterm(next_step: str) -> Iterator[StopRequest]:
    """A request to stop that SIGTERM sets while the block runs.

    While batches are written the block ends by itself after the one in hand. Anything else, such as an index build, is
    interrupted as Ctrl-C does it, and so is a batch by a second SIGTERM.

    Args:
        next_step: the command that goes on with what the block did.

    Raises:
        Stopped: it was interrupted.
    """
    stop = StopRequest()

    def end(_number: int, _frame: FrameType | None) -> None:
        is_second = stop.is_set()
        stop.set()
        if is_second or not stop.is_heeded:
            raise Terminated
        stderr.print("SIGTERM: ending after the batch in hand")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield stop
    except Terminated:
        raise Stopped(
            "stopped by SIGTERM",
            state="every committed batch is kept, and no column is exchanged by half",
            next_step=next_step,
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
