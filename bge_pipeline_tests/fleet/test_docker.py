"""Dockerfile and compose files: valid to their linters, and their commands start what they say, here without containers."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.fleet.commands import DEPLOY, services
from bge_pipeline_tests.fleet.conftest import Deploy
from bge_pipeline_tests.fleet.deployment import free_port, wait_for
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.postgres_programs import programs_folder

DOCKERFILE = DEPLOY / "docker/Dockerfile"
COMPOSE = sorted(DEPLOY.glob("*/docker-compose*.yaml"))
CONTROL_PLANE = ["bge_pipeline.orchestration.run_coordinator", "bge_pipeline.orchestration.celery_run_launcher"]


def stages() -> dict[str, str]:
    """The text of each stage of the Dockerfile."""
    parts = re.split(r"^FROM \S+ AS (\w+)\n", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def instruction(stage: str, name: str) -> list[str]:
    """The words of CMD, or of the CMD of HEALTHCHECK."""
    pattern = {"CMD": r"^CMD (\[.*\])", "HEALTHCHECK": r"^HEALTHCHECK [^\[]*CMD (\[.*\])"}[name]
    (found,) = re.findall(pattern, stages()[stage].replace("\\\n", ""), re.MULTILINE)
    words: list[str] = ast.literal_eval(found)
    return words


@pytest.mark.parametrize(
    ("stage", "service"), [("control", "webserver"), ("cpu", "code-server"), ("cuda", "code-server")]
)
def test_an_image_starts_and_asks_what_the_compose_file_does(stage: str, service: str):
    assert instruction(stage, "CMD") == services()[service]["command"]
    assert ["CMD", *instruction(stage, "HEALTHCHECK")] == services()[service]["healthcheck"]["test"]


@pytest.mark.parametrize("stage", ["control", "cpu", "cuda"])
def test_no_image_runs_as_root(stage: str):
    assert re.search(r"^USER 10001$", stages()[stage], re.MULTILINE)


def test_the_image_of_webserver_and_daemon_needs_no_library_of_the_model():
    loads = "; ".join(f"import {name}" for name in CONTROL_PLANE if "celery" not in name or shutil.which("celery"))
    heavy = "{'torch', 'transformers', 'sentence_transformers', 'numpy', 'pgvector', 'pydantic_settings', 'psutil'}"
    script = f"import sys; {loads}; print(sorted({heavy} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout.strip() == "[]"


def test_the_model_is_downloaded_whole_but_for_what_is_excluded():
    click = pytest.importorskip("click")
    app = pytest.importorskip("huggingface_hub.cli.hf").app
    if not isinstance(app, click.Group):
        pytest.skip("the installed huggingface-hub has no command of click's")
    download = app.get_command(click.Context(app), "download")
    download = download.materialize() if hasattr(download, "materialize") else download
    (line,) = re.findall(r"hf download ([^;]+);", stages()["model"].replace("\\\n", ""))

    parsed = download.make_context("download", shlex.split(line)).params

    assert parsed["repo_id"] == "${EMBEDDING_MODEL}"
    assert not parsed["filenames"]
    assert list(parsed["exclude"]) == ["*.onnx", "*.msgpack", "*.h5"]


def test_what_is_copied_is_there_and_sent_to_the_builder():
    sent = {
        line[1:] for line in (DEPLOY / "docker/Dockerfile.dockerignore").read_text().split() if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source for sources in copied for source in sources.split()}

    assert sources == sent
    assert [source for source in sources if not (DEPLOY.parent / source).exists()] == []


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (group `deployment`)")

    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_compose_file_follows_the_specification(path: Path):
    compose_spec = pytest.importorskip("compose_spec", reason="group `deployment` is not installed")
    # With YAML's merge keys resolved, which Docker does itself.
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(path.read_text())))


def test_every_file_that_a_compose_file_names_is_there():
    for path in COMPOSE:
        for service in yaml.safe_load(path.read_text())["services"].values():
            if build := service.get("build"):
                assert build["target"] in stages()
                assert (DEPLOY / "docker" / build.get("context", "../..") / "pyproject.toml").exists()
    for config in yaml.safe_load((DEPLOY / "celery/docker-compose.yaml").read_text())["configs"].values():
        assert (DEPLOY / "docker" / config["file"]).exists()


@pytest.mark.pgvector
def test_a_server_with_a_socket_alone_as_initdb_has_it_is_not_well_yet():
    kind, program, *arguments = services()["postgres"]["healthcheck"]["test"]
    server = OwnServer.temporary()
    try:
        port = str(free_port())  # on which nobody listens
        server.set(port=port)
        its_socket = {"PGHOST": str(server.folder), "PGPORT": port}
        found, well = (
            subprocess.run([programs_folder() / program, *words], env=its_socket, check=False, timeout=60).returncode
            for words in ([], arguments)
        )
    finally:
        server.remove()

    assert kind == "CMD"
    assert (found, well) == (0, 2)


@pytest.mark.pgvector
@pytest.mark.slow
@pytest.mark.thorough
def test_the_three_processes_of_the_compose_file_take_a_table_through_expand(deploy: Deploy, migration: Migration):
    deployment = deploy(instance="dagster.yaml")
    deployment.start_dagster()
    wait_for(lambda: deployment.is_well("daemon"), 120)

    deployment.webserver.launch("expand_job")

    wait_for(lambda: read_status(migration).phase == "expanded", 120)
