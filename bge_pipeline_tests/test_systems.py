"""What is missing on Windows is not needed for loading this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bge_pipeline.orchestration import dev_server
from bge_pipeline.phases.memory import peak_memory_bytes
from bge_pipeline_tests.roads import ROOT

UNIX_ONLY = [
    "_curses", "_posixshmem", "_posixsubprocess", "crypt", "curses", "dbm.gnu", "dbm.ndbm", "fcntl", "grp", "nis", "ossaudiodev",
    "posix", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios", "tty",
]  # fmt: skip

LOAD_EVERYTHING = """
import builtins, importlib, importlib.util, pathlib, pkgutil, sys

missing, root = set(sys.argv[1].split()), pathlib.Path(sys.argv[2])
import_module = builtins.__import__


def without_unix(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if name in missing and importer.split(".")[0] in ("bge_pipeline", "migrations", "scripts"):
        raise ModuleNotFoundError(f"{importer} imports {name}, which is missing on Windows", name=name)
    return import_module(name, globals, locals, fromlist, level)


builtins.__import__ = without_unix
sys.path.insert(0, str(root))
loaded = 0
import bge_pipeline
names = [module.name for module in pkgutil.walk_packages(bge_pipeline.__path__, "bge_pipeline.")]
names += ["scripts.pg_dump_line", "scripts.require_same_model", "scripts.test_embedding_speed"]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
        loaded += 1
for path in sorted(root.glob("migrations/versions/*.py")):
    spec = importlib.util.spec_from_file_location(f"migrations.versions.r{path.stem}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    loaded += 1
print(loaded)
"""


@pytest.mark.slow
def test_every_module_loads_without_the_modules_that_windows_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("dagster_celery")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD_EVERYTHING, " ".join(UNIX_ONLY), str(ROOT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    modules = [path for path in ROOT.glob("bge_pipeline/**/*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert int(done.stdout) > len(modules)


def test_peak_memory_is_known_without_the_module_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    assert psutil.virtual_memory().total > 0  # psutil itself is loaded before `resource` is taken away
    kept = peak_memory_bytes()
    monkeypatch.setitem(sys.modules, "resource", None)

    assert 0 < peak_memory_bytes() <= kept * 1.1


def test_the_ui_is_served_where_the_system_knows_no_hangup(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    monkeypatch.delattr(signal, "SIGHUP")
    before = signal.getsignal(signal.SIGTERM)
    with dev_server._passing_signals_on():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
