"""The values for Dagster's chart: what the launcher makes of them, and, where Helm is, what the chart renders."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.launcher import LaunchRunContext
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext

from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.run_coordinator import RoutingRunCoordinator
from bge_pipeline_tests.fleet.commands import DEPLOY, services
from bge_pipeline_tests.fleet.kubernetes_api import recorded_jobs
from bge_pipeline_tests.fleet.origin import code_of

VALUES = yaml.safe_load((DEPLOY / "kubernetes/values.yaml").read_text())
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
COORDINATOR = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
LOCATION = RegisteredCodeLocationOrigin(CODE["name"])
VERSIONS = ["1.31", "1.37"]

BACKFILL = ("backfill_job", [dg.AssetKey("backfilled_embeddings")])
SWAP = ("swap_job", None)


def as_snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def container_context() -> dict[str, Any]:
    """What the chart tells the launcher of the code server's container, for its runs to have it too."""
    return {
        "k8s": {
            "env_secrets": [secret["name"] for secret in CODE["envSecrets"]],
            "volumes": CODE["volumes"],
            "volume_mounts": CODE["volumeMounts"],
            "resources": CODE["resources"],
        }
    }


def launched(job: str, selection: list[dg.AssetKey] | None, folder: Path) -> dict[str, Any]:
    """The job that the launcher posts for a run which the coordinator has tagged."""
    pytest.importorskip("dagster_k8s", reason="the extra kubernetes is not installed")
    from dagster_k8s import K8sRunLauncher

    with recorded_jobs(folder) as (kubeconfig, posted), dg.DagsterInstance.local_temp(str(folder)) as instance:
        coordinator = RoutingRunCoordinator.from_config_value(None, COORDINATOR["config"])
        coordinator.register_instance(instance)
        launcher = K8sRunLauncher(
            dagster_home=VALUES["global"]["dagsterHome"],
            instance_config_map="bge-pipeline-dagster-instance",
            postgres_password_secret=VALUES["global"]["postgresqlSecretName"],
            service_account_name="bge-pipeline",
            load_incluster_config=False,
            kubeconfig_file=str(kubeconfig),
            image_pull_policy=LAUNCHER["imagePullPolicy"],
            security_context=LAUNCHER["securityContext"],
            run_k8s_config={as_snake(name): value for name, value in LAUNCHER["runK8sConfig"].items()},
        )
        launcher.register_instance(instance)
        run = instance.create_run_for_job(
            defs.resolve_job_def(job),
            asset_selection=frozenset(selection) if selection else None,
            job_code_origin=code_of(
                job,
                container_image=f"{CODE['image']['repository']}:{CODE['image']['tag']}",
                container_context=container_context(),
                entry_point=["dagster"],
            ),
            remote_job_origin=RemoteRepositoryOrigin(LOCATION, "__repository__").get_job_origin(job),
        )
        submitted = coordinator.submit_run(SubmitRunContext(run, workspace=None))
        launcher.launch_run(LaunchRunContext(submitted, workspace=None))
    (sent,) = posted
    return sent


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def require_valid(manifest: dict[str, Any]) -> None:
    """Valid to the letter in the oldest and the newest version of Kubernetes that the schemas here know."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="group `deployment` is not installed")
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_partition_is_a_job_with_one_gpu_of_its_own(tmp_path: Path):
    job = launched(*BACKFILL, tmp_path)

    require_valid(job)
    container, pod = container_of(job), job["spec"]["template"]["spec"]
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert container["image"] == "registry.example.com/bge-pipeline:cuda"
    assert container["args"][:3] == ["dagster", "api", "execute_run"]


def test_the_swap_is_a_job_without_a_gpu(tmp_path: Path):
    job = launched(*SWAP, tmp_path)

    require_valid(job)
    assert container_of(job)["resources"] == CODE["resources"]


@pytest.mark.parametrize("what", [BACKFILL, SWAP], ids=["backfill", "swap"])
def test_a_job_gets_its_secrets_by_reference_its_model_from_the_claim_and_no_root(what: Any, tmp_path: Path):
    job = launched(*what, tmp_path)

    container, pod = container_of(job), job["spec"]["template"]["spec"]
    assert {"secretRef": {"name": "bge-pipeline"}} in container["envFrom"]
    password = next(variable for variable in container["env"] if variable["name"] == "DAGSTER_PG_PASSWORD")
    assert "secretKeyRef" in password["valueFrom"]
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "bge-pipeline-models"}]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_no_value_holds_a_password():
    def words(value: Any) -> Any:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield str(name)
                yield from words(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from words(inner)

    assert "postgresqlPassword" not in set(words(VALUES))
    assert VALUES["generatePostgresqlPasswordSecret"] is False


def test_the_disruption_budget_is_that_of_the_jobs_and_the_claim_is_the_one_mounted(tmp_path: Path):
    manifests = {manifest["kind"]: manifest for manifest in VALUES["extraManifests"]}
    for manifest in manifests.values():
        require_valid(manifest)

    labels = launched(*BACKFILL, tmp_path)["spec"]["template"]["metadata"]["labels"]
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifests["PersistentVolumeClaim"]["metadata"]["name"] == "bge-pipeline-models"


def test_the_code_server_is_started_as_in_the_compose_file():
    start = ["dagster", "code-server", "start", *CODE["codeServerArgs"]]

    assert services()["code-server"]["command"] == [*start, "-h", "0.0.0.0", "-p", str(CODE["port"])]


def test_the_instance_of_the_chart_has_the_settings_of_the_deployed_one():
    deployed = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    monitoring, retries = (VALUES["dagsterDaemon"][name] for name in ("runMonitoring", "runRetries"))

    assert {as_snake(name) for name in monitoring} >= set(deployed["run_monitoring"])
    assert {as_snake(name): value for name, value in retries.items()} == deployed["run_retries"]
    assert VALUES["additionalInstanceConfig"]["concurrency"]["pools"] == deployed["concurrency"]["pools"]
    assert VALUES["pythonLogs"]["managedPythonLoggers"] == deployed["python_logs"]["managed_python_loggers"]


def test_the_chart_renders_valid_manifests_and_an_instance_that_dagster_takes(tmp_path: Path):
    chart = os.environ.get("DAGSTER_CHART")
    if chart is None or shutil.which("helm") is None:
        pytest.skip("needs helm, and Dagster's chart in the folder that DAGSTER_CHART names")
    command = ["helm", "template", "bge-pipeline", chart, "--values", str(DEPLOY / "kubernetes/values.yaml")]
    rendered = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr

    manifests = [manifest for manifest in yaml.safe_load_all(rendered.stdout) if manifest]
    for manifest in manifests:
        require_valid(manifest)
    (instance,) = (
        manifest["data"]["dagster.yaml"] for manifest in manifests if "dagster.yaml" in manifest.get("data", {})
    )
    from dagster._core.instance.config import dagster_instance_config_schema

    configured = yaml.safe_load(instance)
    assert set(configured) <= set(dagster_instance_config_schema())
    assert configured["run_coordinator"]["class"] == RoutingRunCoordinator.__name__
    assert configured["run_storage"]["config"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
