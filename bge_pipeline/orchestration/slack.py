"""Telling a Slack channel, by dagster-slack, where SLACK_TOKEN and SLACK_CHANNEL are set; it never fails what it tells of."""

import logging
from http.client import HTTPException
from importlib.util import find_spec

from bge_pipeline.settings import TelemetrySettings

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10


def why_silent(settings: TelemetrySettings) -> str | None:
    """Why nobody can be told; None where somebody can."""
    if not settings.tells_slack:
        return "SLACK_TOKEN and SLACK_CHANNEL are not set"
    if find_spec("dagster_slack") is None:
        return "SLACK_TOKEN is set, and dagster-slack is not installed: pip install 'bge-pipeline[slack]'"
    return None


def tell_slack(settings: TelemetrySettings, message: str, page: str = "") -> str | None:
    """Post a message, with a link to that page of the Dagster UI where DAGSTER_URL says where it is.

    Returns:
        What prevented it; None where Slack took it.
    """
    prevented = why_silent(settings)
    if prevented is not None or settings.slack_token is None:
        return prevented
    from dagster_slack import SlackResource
    from slack_sdk.errors import SlackClientError

    client = SlackResource(token=settings.slack_token.get_secret_value()).get_client()
    client.base_url, client.timeout = f"{settings.slack_api_url}/", _TIMEOUT_SECONDS
    link = f"\n<{settings.dagster_url}{page}|Dagster UI>" if settings.dagster_url is not None else ""
    try:
        client.chat_postMessage(channel=str(settings.slack_channel), text=_literal(message) + link)
    except (SlackClientError, OSError, HTTPException) as error:
        # One line: the answer may come as a page of a proxy.
        return f"Slack did not take it: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return None


def _literal(message: str) -> str:
    """The characters that Slack would take for links and mentions, as it wants them written."""
    return message.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
