"""Where log lines go: to standard error, for people or, with LOG_FORMAT=json, as one JSON object a line and nothing else."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from typing import Literal, TextIO

from rich.logging import RichHandler

from bge_pipeline.console import stderr
from bge_pipeline.telemetry.log_lines import JsonLines

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_FORCE_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Variables by which rich would draw bars where no terminal is."""
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}


class JsonStream(io.TextIOBase):
    """Takes the place of standard error: what is printed there, and flushed, becomes one line of the log.

    It is no terminal, so that progress is told in log lines too, and no bar is drawn.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._written: list[str] = []

    def write(self, printed: str) -> int:
        """Keep it until it is flushed.

        Raises:
            TypeError: it is not text, by which click tells a text stream from one of bytes.
        """
        if not isinstance(printed, str):
            raise TypeError(f"expected text, got {type(printed).__name__}")
        self._written.append(printed)
        return len(printed)

    def flush(self) -> None:
        """Log what was printed since the last flush, at the level that it begins with (`error:`, `warning:`)."""
        printed, self._written = _ESCAPES.sub("", "".join(self._written)).strip(), []
        if printed:
            level = _LEVELS.get(printed.partition(":")[0].lower(), logging.INFO)
            record = logging.LogRecord("bge_pipeline", level, __file__, 0, "%s", (printed,), None)
            self._handler.handle(record)

    def isatty(self) -> bool:
        """Never."""
        return False


def log_to_stderr(log_format: Literal["text", "json"], level: int) -> None:
    """Let this project's loggers write to standard error; with `json`, everybody who prints there."""
    logger = logging.getLogger("bge_pipeline")
    logger.setLevel(level)
    logger.propagate = False
    if log_format == "text":
        logger.handlers = [RichHandler(console=stderr, show_path=False, show_time=False, markup=False)]
        return
    handler = logging.StreamHandler(_beneath(sys.stderr))
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler]
    for name in _FORCE_A_TERMINAL:
        os.environ.pop(name, None)
    sys.stderr = JsonStream(handler)


def _beneath(stream: TextIO) -> TextIO:
    """Standard error itself, where it was replaced before in this process."""
    return sys.__stderr__ or stream if isinstance(stream, JsonStream) else stream
