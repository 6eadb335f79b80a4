"""A handle on an application that runs in the frameworks' environment, and the models that stand for the old and the new one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bge_pipeline.embedding.encoder import Encoder

_FOLDER = Path(__file__).parent / "applications"


class Application:
    """A process that uses a framework; every act sends the vectors that the framework will ask its model for."""

    def __init__(self, python: str, name: str, url: str, log: Path) -> None:
        self._command = [python, str(_FOLDER / "serve.py"), name, url]
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._program: str | None = None
        self._encoder: Encoder | None = None

    def open(self, program: str, encoder: Encoder) -> None:
        """Open the store as a block of the page does, with that model from now on; another program is another process."""
        if program != self._program:
            self.close()
            self._start()
            self._program = program
        self._encoder = encoder
        self._ask({"open": program, "dimensions": encoder.space.dimensions})

    def add(self, texts: dict[int, str]) -> None:
        """Add documents by number."""
        self._do("add", list(texts.values()), texts)

    def search(self, query: str, k: int) -> list[str]:
        """The texts that the framework finds, nearest first."""
        found: list[str] = self._do("search", [query], query, k)
        return found

    def update(self, number: int, text: str) -> None:
        """Give a document another text, and the vector of it."""
        self._do("update", [text], number, text)

    def delete(self, number: int) -> None:
        """Delete a document."""
        self._do("delete", [], number)

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._stdin.close()
        self._process.wait(timeout=30)
        self._stdout.close()
        self._process = None

    def _start(self) -> None:
        silent = {"MEM0_TELEMETRY": "false", "AGNO_TELEMETRY": "false", "HAYSTACK_TELEMETRY_ENABLED": "false"}
        variables = {"PATH": os.environ["PATH"], "HOME": str(self._log.parent)} | silent
        with self._log.open("a") as errors:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=variables, text=True
            )

    @property
    def _stdin(self) -> IO[str]:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[str]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    def _do(self, name: str, texts: Sequence[str], *arguments: Any) -> Any:
        assert self._encoder is not None
        vectors = self._encoder.encode(self._encoder.tokenize(texts)).tolist() if texts else []
        return self._ask({"do": name, "with": arguments, "vectors": dict(zip(texts, vectors, strict=True))})

    def _ask(self, request: dict[str, Any]) -> Any:
        self._stdin.write(json.dumps(request) + "\n")
        self._stdin.flush()
        line = self._stdout.readline()
        assert line, f"the application ended: {self._log.read_text()[-3_000:]}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]
