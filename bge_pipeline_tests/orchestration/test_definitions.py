"""The code location: loads without a model's libraries, validates, and describes itself to the reader of the UI."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from bge_pipeline.definitions import defs
from bge_pipeline.orchestration.ops import ConfirmConfig, PauseConfig, RetireConfig
from bge_pipeline.orchestration.resources import SettingsResource

HEAVY = ("torch", "sentence_transformers", "transformers", "openvino", "sklearn", "scipy")
ASSETS = ["schema_with_384_column", "backfilled_embeddings", "swapped_index", "benchmark_report"]
JOBS = {
    "expand_job",
    "backfill_job",
    "swap_job",
    "report_job",
    "embed_pending_job",
    "keep_old_current_job",
    "compare_job",
    "status_job",
    "pause_job",
    "resume_job",
    "rollback_job",
    "retire_job",
    "adopt_table_job",
}


def test_loading_imports_none_of_the_models_libraries():
    code = f"import sys, bge_pipeline.definitions; print([name for name in {HEAVY} if name in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert loaded.stdout.strip() == "[]"
    assert loaded.stderr == ""


def test_dagster_validates_the_code_location(tmp_path: Path):
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "bge_pipeline.definitions"]

    validated = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"DAGSTER_HOME": str(tmp_path)},
    )

    assert validated.returncode == 0, validated.stdout + validated.stderr


def test_every_asset_says_what_it_is_and_whose():
    graph = defs.resolve_asset_graph()

    for name in ASSETS:
        node = graph.get(dg.AssetKey(name))
        assert node.description
        assert node.owners == ["team:search"]
        assert node.kinds
        assert node.group_name == "embedding_migration"
        assert node.code_version


def test_the_assets_follow_each_other():
    graph = defs.resolve_asset_graph()

    for upstream, downstream in pairwise(ASSETS):
        assert graph.get(dg.AssetKey(downstream)).parent_keys == {dg.AssetKey(upstream)}


def test_one_encoder_runs_at_a_time():
    job = defs.resolve_job_def("backfill_job")

    assert job.graph.node_dict["backfilled_embeddings"].definition.pool == "encoder"
    for name in ("embed_pending", "keep_old_current"):
        assert defs.resolve_job_def(f"{name}_job").graph.node_dict[name].definition.pool == "encoder"


def test_every_job_sensor_and_check_is_described():
    jobs = [job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")]

    assert {job.name for job in jobs} == JOBS
    assert all(job.description for job in jobs)
    assert all(sensor.description for sensor in defs.sensors or ())
    assert all(spec.description for check in defs.asset_checks or () for spec in check.check_specs)


@pytest.mark.parametrize("config", [SettingsResource, ConfirmConfig, PauseConfig, RetireConfig])
def test_every_field_of_the_launchpad_is_described(config: type[dg.Config]):
    assert all(field.description for field in config.model_fields.values())


def test_the_checks_that_guard_the_swap_block():
    blocking = {spec.name for check in defs.asset_checks or () for spec in check.check_specs if spec.blocking}

    assert blocking == {"nothing_pending", "unit_length", "right_embedding_space", "quality_gate", "index_valid"}


def test_what_people_wait_for_goes_before_thousands_of_partitions():
    def priority_of(job: str) -> int:
        return int(defs.resolve_job_def(job).tags.get("dagster/priority", "0"))

    order = [{"backfill_job"}, {"embed_pending_job", "swap_job"}, {"status_job", "pause_job", "rollback_job"}]
    assert [{priority_of(job) for job in jobs} for jobs in order] == [{0}, {10}, {20}]


def test_a_backfill_has_as_many_partitions_a_run_as_the_environment_says():
    code = (
        "from bge_pipeline.definitions import defs; import dagster as dg; "
        "print(defs.resolve_asset_graph().get(dg.AssetKey('backfilled_embeddings')).backfill_policy.max_partitions_per_run)"
    )
    for value, expected in (("20", "20"), ("none", "1")):
        environment = os.environ | {"PARTITIONS_PER_RUN": value}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert found.stdout.strip() == expected
