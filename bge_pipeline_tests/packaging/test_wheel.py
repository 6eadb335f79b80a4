"""The wheel alone, without extras and without a clone: it loads, plans, and runs the Alembic revisions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline.settings import Settings
from bge_pipeline_tests.packaging.wheel_environment import WheelEnvironment, make_environment
from bge_pipeline_tests.roads import ROOT, environment, schema, vectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PARTS = ("bge_pipeline", "migrations", "pyproject.toml", "setup.py", "README.md", "LICENSE")
EXTRAS = ["openvino", "nncf", "pytest", "onnxruntime", "celery"]
NEED_AN_EXTRA = {
    "bge_pipeline.embedding.openvino.backend",
    "bge_pipeline.embedding.openvino.cache",
    "bge_pipeline.orchestration.celery_app",
    "bge_pipeline.orchestration.celery_run_launcher",
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as a release is."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        check=True,
    )
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> WheelEnvironment:
    """An environment with the wheel and what it declares."""
    return make_environment(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture
def run(installed: WheelEnvironment, tmp_path: Path) -> Run:
    """Runs a program of that environment far from the project."""

    def run_program(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # Last of all, since `variables` hold the environment of the tests, whose PYTHONPATH may lead to a clone.
        given = os.environ | variables
        own = {name: value for name, value in given.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return subprocess.run(
            [installed.programs / program, *arguments],
            env=own | {"PYTHONNOUSERSITE": "1", "PYTHONWARNINGS": "ignore"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run_program


def test_the_wheel_brings_the_revisions_and_installs_no_package_but_its_own(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"bge_pipeline"}
    brought = {name.removeprefix("bge_pipeline/") for name in names if name.startswith("bge_pipeline/migrations/")}
    assert brought == {
        str(path.relative_to(ROOT).as_posix()) for end in ("py", "mako") for path in ROOT.glob(f"migrations/**/*.{end}")
    }


def test_without_extras_every_module_loads_but_those_of_an_extra(run: Run, installed: WheelEnvironment) -> None:
    script = f"""
import importlib, importlib.util, json, pkgutil
import bge_pipeline
failed = []
for module in pkgutil.walk_packages(bge_pipeline.__path__, "bge_pipeline."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed.append(module.name)
present = [name for name in {EXTRAS} if importlib.util.find_spec(name)]
from bge_pipeline.definitions import defs
jobs = sorted(job.name for job in defs.resolve_all_job_defs())
print(json.dumps([bge_pipeline.__file__, failed, present, jobs]))
"""
    done = run("python", "-c", script)

    assert done.returncode == 0, done.stderr
    where, failed, present, jobs = json.loads(done.stdout.splitlines()[-1])
    assert Path(where).is_relative_to(installed.folder)
    assert (set(failed), present) == (NEED_AN_EXTRA, [])
    assert {"expand_job", "backfill_job", "swap_job"} <= set(jobs)


def test_the_command_explains_itself_and_tells_its_version(run: Run) -> None:
    assert "plan" in run("bge-pipeline", "--help").stdout
    assert run("bge-pipeline", "--version").stdout.strip() == f"bge-pipeline {version('bge-pipeline')}"


@pytest.mark.thorough
def test_the_demo_needs_nothing_but_the_wheel(run: Run, run_folder: Path) -> None:
    # Outside pytest's own folder, whose rights would keep the embedded server out.
    home = {"BGE_PIPELINE_HOME": str(run_folder / "wheel"), "BENCHMARK_TEXTS": "32"}

    demo = run("bge-pipeline", "demo", "--rows", "150", "--json", **home)

    assert demo.returncode == 0, demo.stderr
    result = json.loads(demo.stdout)
    assert (result["before"]["dimensions"], result["after"]["dimensions"], result["after"]["pending"]) == (1536, 384, 0)
    assert result["after"]["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert result["ndcg_after"] > result["ndcg_before"]
    assert Path(result["report"]).exists()
    found = run("bge-pipeline", "search", "how do I close a file", "--json", **home)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["results"]


@pytest.mark.pgvector
def test_it_plans_on_a_real_server(run: Run, settings: Settings, installed: WheelEnvironment) -> None:
    where = run("python", "-c", "import bge_pipeline; print(bge_pipeline.__file__)", **environment(settings))
    assert Path(where.stdout.strip()).is_relative_to(installed.folder)

    done = run("bge-pipeline", "plan", "--json", **environment(settings))

    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["rows"], plan["new_dimensions"], plan["obstacles"]) == (300, 384, [])


@pytest.mark.thorough
@pytest.mark.pgvector
def test_the_revisions_take_the_table_through_all_phases_and_back(
    run: Run, settings: Settings, database: Database, migration: Migration
) -> None:
    before = schema(database), vectors(database)
    variables = environment(settings, QUALITY_GATE="off", SEARCH_PROBES="10")

    def alembic(*arguments: str) -> str:
        done = run("bge-pipeline", "alembic", *arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "CREATE INDEX CONCURRENTLY" in alembic("upgrade", "head", "--sql")
    phases = []
    for revision in ("005", "006", "007"):
        alembic("upgrade", revision)
        phases.append(read_status(migration).phase)
    assert phases == ["expanded", "backfilled", "swapped"]
    assert "007 (head)" in alembic("current")
    alembic("downgrade", "004")
    assert (schema(database), vectors(database)) == before


@pytest.mark.pgvector
def test_an_alembic_ini_of_ones_own_names_the_revisions_by_the_package(
    run: Run, settings: Settings, migration: Migration, tmp_path: Path
) -> None:
    (tmp_path / "embedding.ini").write_text("[alembic]\nscript_location = bge_pipeline:migrations\n")

    done = run("python", "-m", "alembic", "-c", "embedding.ini", "upgrade", "005", **environment(settings))

    assert done.returncode == 0, done.stderr
    assert read_status(migration).phase == "expanded"
