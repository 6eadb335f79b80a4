"""What a person does in Dagster's UI, as the requests that the UI makes."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

_LAUNCH = """
mutation Launch($job: String!, $tags: [ExecutionTag!]) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "bge_pipeline", repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
_BACKFILL = """
mutation Backfill($partitions: [String!]!) {
  launchPartitionBackfill(backfillParams: {
    assetSelection: [{path: ["backfilled_embeddings"]}], partitionNames: $partitions
  }) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
}
"""
_TERMINATE = "mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }"


class Webserver:
    """The webserver on a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    def launch(self, job: str, **tags: str) -> str:
        """Launch a job from its launchpad; its run's id."""
        told = [{"key": name, "value": value} for name, value in tags.items()]
        launched = self._ask(_LAUNCH, job=job, tags=told)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def materialize(self, keys: list[str]) -> None:
        """Launch a backfill of these partitions from the page of the asset."""
        launched = self._ask(_BACKFILL, partitions=keys)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def terminate(self, run_id: str) -> None:
        """Terminate a run."""
        assert self._ask(_TERMINATE, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def _ask(self, query: str, **variables: object) -> dict[str, Any]:
        request = Request(
            f"http://127.0.0.1:{self._port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=120) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data
