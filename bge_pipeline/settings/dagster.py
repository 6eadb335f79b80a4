"""Dagster's own: its database, partitions and reruns."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from bge_pipeline.settings.group import Group, must_be_postgres_url
from bge_pipeline.settings.web_url import must_be_web_url


class DagsterSettings(Group):
    """Partitions, reruns and the database of the records."""

    bge_pipeline_tables: str | None = Field(
        None,
        description="env files of the tables that one Dagster code location serves, e.g. papers.env,notes.env; unset: the one "
        "table of TARGET_*",
    )
    encoder_pool: str = Field(
        "encoder",
        pattern=r"^\w+$",
        description="Dagster's pool of the runs that load the model; tables on devices of their own may have pools of their own",
    )
    partition_rows: int = Field(50_000, ge=1, description="rows in one id range, that is one Dagster partition")
    partitions_per_run: int = Field(
        1, ge=1, description="partitions that a Dagster backfill puts into one run; read as the code location is loaded"
    )
    dagster_database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL URL of the database for Dagster's own records; unset: one on the embedded PostgreSQL",
    )
    reports_url: str | None = Field(
        None,
        description="where a browser finds the folder of the benchmark reports; unset: where bge-pipeline dev serves it",
    )
    max_partition_attempts: int = Field(3, ge=1, description="runs of one partition before the sensor gives up on it")
    retry_backoff_seconds: int = Field(
        60, ge=0, description="wait before the first rerun of a failed partition; doubles"
    )

    _is_dagsters_url = field_validator("dagster_database_url")(must_be_postgres_url)
    _is_reports_url = field_validator("reports_url")(must_be_web_url("REPORTS_URL"))
