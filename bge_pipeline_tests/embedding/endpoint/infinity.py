"""infinity, a real OpenAI-compatible server, from PyPI: installed once into a cache folder, started where a test asks."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import httpx
import pytest

_PINS = Path(__file__).with_name("infinity.txt")
_START_SECONDS = 240


def infinity_command() -> Path:
    """The server's command: that of INFINITY_EMB, or of an environment of its own, which is made where it is missing.

    Skips the test where it cannot be installed.
    """
    if named := os.environ.get("INFINITY_EMB"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bge-pipeline"
    folder = cache / f"infinity-{hashlib.sha256(_PINS.read_bytes()).hexdigest()[:8]}-py{sys.version_info.minor}"
    command = folder / "bin" / "infinity_emb"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "infinity.lock"):
        if not command.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            installed = subprocess.run(
                [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", _PINS],
                capture_output=True,
                text=True,
                check=False,
            )
            if installed.returncode:
                shutil.rmtree(folder)
                pytest.skip(f"infinity-emb cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return command


@contextmanager
def infinity_serving(model: Path, name: str, log: Path) -> Iterator[str]:
    """Base URL of a server of that model, while the block runs."""
    command = infinity_command()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--no-bettertransformer",
        "--no-model-warmup",
    ]
    with log.open("w") as output:
        server = subprocess.Popen(
            [
                command,
                "v2",
                "--model-id",
                model,
                "--served-model-name",
                name,
                *options,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--url-prefix",
                "/v1",
            ],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait_until_it_serves(server, url, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_until_it_serves(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and server.poll() is None:
        try:
            if httpx.get(f"{url}/models", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it is still loading
        time.sleep(0.5)
    pytest.fail(f"infinity does not serve: {log.read_text()[-2_000:]}")
