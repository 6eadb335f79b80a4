"""Dagster, Redis and Celery's workers as a deployment has them, each a process that a test may kill and start again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from bge_pipeline_tests.fleet.commands import DEPLOY, command_of, healthcheck_of
from bge_pipeline_tests.fleet.webserver import Webserver

PATIENCE_SECONDS = 240
_EVERYWHERE = "0.0.0.0"
Found = TypeVar("Found")


class Deployment:
    """The services of the compose files as processes of this machine; every one has a Dagster home of its own.

    Args:
        folder: for homes, logs and the broker's data.
        variables: the environment of every process, DATABASE_URL and DAGSTER_DATABASE_URL among them.
        instance: the dagster.yaml below deploy/ that every process gets.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str], instance: str) -> None:
        self._folder = folder
        self._instance = DEPLOY / instance
        self._ports = {port: str(free_port()) for port in ("3000", "4000", "6379")}
        redis = f"redis://127.0.0.1:{self._ports['6379']}"
        self._variables = dict(variables) | {
            "CELERY_BROKER_URL": f"{redis}/0",
            "CELERY_RESULT_BACKEND": f"{redis}/1",
            "CODE_SERVER_HOST": "127.0.0.1",
            "CODE_SERVER_PORT": self._ports["4000"],
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str, **overrides: str) -> dict[str, str]:
        """The environment of a process, and a Dagster home for it."""
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._instance, home / "dagster.yaml")
        shutil.copy(DEPLOY / "workspace.yaml", home)
        root = str(DEPLOY.parent)  # the tests' own module, which counts, is no part of what is installed
        return os.environ | self._variables | {"DAGSTER_HOME": str(home), "PYTHONPATH": root} | overrides

    def start(self, service: str, name: str = "", *, options: tuple[str, ...] = (), **overrides: str) -> None:
        """Start a service's command; `name` tells two of one service apart."""
        name = name or service
        assert name not in self._processes or self._processes[name].poll() is not None, f"{name} runs already"
        environment = self.environment(name, **overrides)
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*command_of(service, self._replaced(service, name)), *options],
                cwd=environment["DAGSTER_HOME"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a service at once, as when its machine loses power."""
        process = self._processes[name]
        assert process.poll() is None, self.log(name).read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End what runs, workers and webserver before what they talk to."""
        running = [process for process in reversed(self._processes.values()) if process.poll() is None]
        for process in running:
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        for process in running:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def pid(self, name: str) -> int:
        """Of a service's first process."""
        return self._processes[name].pid

    def is_well(self, service: str, name: str = "") -> bool:
        """What the healthcheck of the service's container says."""
        name = name or service
        command = healthcheck_of(service, self._replaced(service, name))
        asked = subprocess.run(command, env=self.environment(name), capture_output=True, timeout=60, check=False)
        return asked.returncode == 0

    def log(self, name: str) -> Path:
        """What a service has printed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{name}.log"

    @property
    def webserver(self) -> Webserver:
        """Where it answers."""
        return Webserver(int(self._ports["3000"]))

    def start_dagster(self) -> None:
        """Code server, webserver and daemon, each once the former is well."""
        for service in ("code-server", "webserver", "daemon"):
            self.start(service)
            if service != "daemon":
                wait_for(lambda service=service: self.is_well(service))

    def tasks_of(self, name: str) -> set[str]:
        """The runs that a worker has taken off its queue."""
        return set(re.findall(r"Task execute_job\[([0-9a-f-]+)\] received", self.log(name).read_text()))

    @property
    def broker_folder(self) -> Path:
        """Where the broker keeps its tasks."""
        folder = self._folder / "broker"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _replaced(self, service: str, name: str) -> dict[str, str]:
        return self._ports | {
            _EVERYWHERE: "127.0.0.1",
            "/data": str(self.broker_folder),
            f"{service.partition('-')[0]}@": f"{name}@",
            "$$HOSTNAME": socket.gethostname(),
        }


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(look: Callable[[], Found], seconds: float = PATIENCE_SECONDS) -> Found:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.2)
    return found
