"""Which machine a run is for: tags that send backfills to the GPUs and everything else elsewhere. Needs Dagster alone.

Webserver and daemon load this module, so that it imports neither the model's libraries nor the phases.
"""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

# Dagster's own dagster.yaml names these by this path: there is no public one.
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext

from bge_pipeline.orchestration.names import BACKFILL_JOB, BACKFILLED


class RoutingRunCoordinator(QueuedRunCoordinator[dg.DagsterInstance]):
    """Dagster's queue, in which every run gets the tags that its launcher goes by.

    Asset runs that a person launches in the UI have no job of ours and so no tags of a job; here they all pass.

    Args:
        backfill_tags: for runs that fill partitions of `backfilled_embeddings` and do nothing else.
        other_tags: for every other run. A tag that a run brings along is left as it is; a value that is no text is
            written as JSON, as `dagster-k8s/config` wants it.
        inst_data: Dagster's record of where this configuration stands.
        queue: what QueuedRunCoordinator takes.
    """

    def __init__(
        self,
        backfill_tags: Mapping[str, Any] | None = None,
        other_tags: Mapping[str, Any] | None = None,
        inst_data: Any | None = None,
        **queue: Any,
    ) -> None:
        self._backfill_tags = _as_text(backfill_tags or {})
        self._other_tags = _as_text(other_tags or {})
        super().__init__(inst_data=inst_data, **queue)

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """QueuedRunCoordinator's fields and the two sets of tags."""
        fields: Any = super().config_type()
        return {
            **fields,
            "backfill_tags": dg.Field(
                dict,
                is_required=False,
                description="Tags of runs that fill partitions of backfilled_embeddings and do nothing else.",
            ),
            "other_tags": dg.Field(dict, is_required=False, description="Tags of every other run."),
        }

    @classmethod
    def from_config_value(cls, inst_data: Any | None, config_value: Mapping[str, Any]) -> "RoutingRunCoordinator":
        """The coordinator that `dagster.yaml` configures."""
        return cls(inst_data=inst_data, **config_value)

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Tag the run and put it into the queue."""
        run = context.dagster_run
        tags = self._backfill_tags if _only_backfills(run) else self._other_tags
        if missing := {name: value for name, value in tags.items() if name not in run.tags}:
            self._instance.add_run_tags(run.run_id, missing)
        return super().submit_run(context)


def _only_backfills(run: dg.DagsterRun) -> bool:
    """Of whatever table: the coordinator does not ask which there are."""
    if run.asset_selection:
        return all(key.path[-1] == BACKFILLED for key in run.asset_selection)
    return run.job_name == BACKFILL_JOB or run.job_name.endswith(f"_{BACKFILL_JOB}")


def _as_text(tags: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in tags.items()}
