"""Log lines for machines: one JSON object each, without the secrets that a URL or a parameter in it may hold."""

from __future__ import annotations

import logging
import re

from pythonjsonlogger.json import JsonFormatter

_URL_PASSWORD = re.compile(r"(://[^\s:/?#@\"]*:)[^\s\"]+(?=@)")
_QUOTES = r"[\\\"']*"
_PARAMETER = re.compile(
    rf"(\b\w*(?:password|passwd|secret|token|api_?key|authorization)\b{_QUOTES}\s*[=:]\s*{_QUOTES}(?:bearer\s+)?)[^\s\\\"'&,;]+",
    re.IGNORECASE,
)


def masked(line: str) -> str:
    """The line with *** for the password of every URL and the value of every parameter that is named like a secret."""
    return _PARAMETER.sub(r"\1***", _URL_PASSWORD.sub(r"\1***", line))


class JsonLines(JsonFormatter):
    """A record as one JSON object: `time` (UTC), `level`, `logger`, `message`, and `exc_info` where there was an error."""

    def __init__(self) -> None:
        super().__init__(
            "{levelname}{name}{message}",
            style="{",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
            json_ensure_ascii=False,
        )

    def format(self, record: logging.LogRecord) -> str:
        """The line, masked."""
        return masked(super().format(record))
