"""What others may see of a process at work: metrics, traces, log lines, and who is told when something stands still."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from bge_pipeline.settings.group import Group
from bge_pipeline.settings.web_url import must_be_web_url


class TelemetrySettings(Group):
    """Metrics, traces, log lines and alarms; all but the alarm in the UI are off unless asked for."""

    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="port on which a process at work serves its metrics to Prometheus, or the next free one; 0: any; unset: none",
    )
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="address on which metrics are served; whoever reaches it may read them"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="json: every line that the command writes to standard error is one JSON object"
    )
    traces: Literal["off", "otlp"] = Field(
        "off",
        description="otlp: a span for each phase and each batch, sent where OTEL_EXPORTER_OTLP_ENDPOINT says (extra `traces`)",
    )
    standstill_minutes: float = Field(
        15, gt=0, description="for how long rows may wait and no process write one before the check `moving` is red"
    )
    slack_token: SecretStr | None = Field(
        None,
        description="token of a Slack bot that tells of failed runs and standstills (extra `slack`); unset: it is silent",
    )
    slack_channel: str | None = Field(None, min_length=1, description="channel in which it tells them, e.g. #search")
    slack_api_url: str = Field("https://slack.com/api", description="Slack's API; another one for GovSlack or a proxy")
    dagster_url: str | None = Field(
        None, description="where a browser finds the Dagster UI, for links in what is told to Slack"
    )

    _is_slacks_url = field_validator("slack_api_url")(must_be_web_url("SLACK_API_URL", key="SLACK_TOKEN"))
    _is_url_of_ui = field_validator("dagster_url")(must_be_web_url("DAGSTER_URL"))

    @property
    def tells_slack(self) -> bool:
        """Whether there is somebody to tell."""
        return self.slack_token is not None
