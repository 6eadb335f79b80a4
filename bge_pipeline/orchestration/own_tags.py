"""Tags that a run sets on itself. Dagster hands them on to the runs that repeat it, so the value says whose it is."""

import dagster as dg


def tag_itself(instance: dg.DagsterInstance, run_id: str, tag: str, value: str = "true") -> None:
    """Set a tag that is said of this run, and of none that repeats it."""
    instance.add_run_tags(run_id, {tag: f"{run_id}:{value}"})


def own_tag(run: dg.DagsterRun, tag: str) -> str | None:
    """What a run's tag says of it; None without one, and where it says it of the run that this one repeats.

    A value of an earlier version names no run, and counts as its own.
    """
    owner, colon, value = run.tags.get(tag, "").partition(":")
    if not colon:
        return owner or None
    return value if owner == run.run_id else None
