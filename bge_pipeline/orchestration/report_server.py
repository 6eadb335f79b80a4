"""Serves the folder of benchmark reports beside the Dagster UI, so that a link in it leads to a page; nothing else."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - what a person asked `dev` to listen on

_REPORT = re.compile(r"benchmark-[\w-]+\.(html|md|json)", re.ASCII)


class _Reports(SimpleHTTPRequestHandler):
    """The pages of a folder by their names; the folder itself is its newest page."""

    def send_head(self) -> Any:
        """Refuse what is no report, and lead from the folder to its newest page."""
        name = self.path.partition("?")[0].strip("/")
        if not name:
            return self._lead_to_newest()
        if _REPORT.fullmatch(name) is None:  # as it stands, before anybody decodes a `%2F` of it
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such report")
            return None
        return super().send_head()

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the terminal of `dev` is Dagster's."""

    def _lead_to_newest(self) -> None:
        newest = newest_report(Path(self.directory))
        if newest is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no report yet: materialize benchmark_report")
            return
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", f"/{newest.name}")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    """On an address of either family."""

    def __init__(self, host: str, port: int, handler: partial[_Reports]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)


def newest_report(folder: Path) -> Path | None:
    """The newest page of the folder; None where there is none."""
    return max(folder.glob("benchmark-*.html"), default=None)


def browser_url(host: str, port: int) -> str:
    """Where a browser on this machine, or of that host, finds what listens on this address."""
    shown = "127.0.0.1" if host in _ANY_ADDRESS else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


@contextmanager
def serving_reports(folder: Path, host: str, port: int) -> Iterator[str]:
    """Serve the reports of `folder` for the length of the block, on another port if something listens on this one.

    Yields:
        The URL under which a browser on this machine, or of that host, finds them.
    """
    handler = partial(_Reports, directory=str(folder))
    try:
        server = _Server(host, port, handler)
    except OSError:
        server = _Server(host, 0, handler)
    threading.Thread(target=server.serve_forever, name="reports", daemon=True).start()
    try:
        yield browser_url(host, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
