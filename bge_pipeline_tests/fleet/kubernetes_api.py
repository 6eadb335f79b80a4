"""What the Kubernetes launcher sends, taken down: the one address of the API that it posts jobs to. It runs nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def recorded_jobs(folder: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """A kubeconfig that leads to the recorder, and the jobs that were posted to it."""
    posted: list[dict[str, Any]] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(posted[-1]).encode()
            self.send_response(201)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_leading_to(f"http://127.0.0.1:{server.server_port}")))
        yield kubeconfig, posted
        server.shutdown()


def _leading_to(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "recorder", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "recorder", "user": "nobody"}}],
        "current-context": "here",
    }
