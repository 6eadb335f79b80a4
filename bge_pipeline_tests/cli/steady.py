"""The command with every figure that a clock or a disk gives replaced by a fixed one, so that its screens can be compared.

Run: python -m bge_pipeline_tests.cli.steady ARGUMENTS, as `bge-pipeline ARGUMENTS`. All else is real.
"""

from __future__ import annotations

import sys
from typing import Any

from bge_pipeline import duration

# Before others take them from there.
duration.duration = lambda seconds: "1.2 s"  # noqa: ARG005
duration.about = lambda seconds: "about 3 min"  # noqa: ARG005

from bge_pipeline import cli  # noqa: E402
from bge_pipeline.database import index_build  # noqa: E402
from bge_pipeline.phases import plan, rollback  # noqa: E402
from bge_pipeline.phases.backfill import BackfillProgress, BackfillResult  # noqa: E402
from bge_pipeline.phases.plan import Plan  # noqa: E402
from bge_pipeline.phases.status import Status  # noqa: E402
from bge_pipeline.phases.swap import SwapResult  # noqa: E402
from bge_pipeline.phases.writing_rates import WritingRates  # noqa: E402
from bge_pipeline.search.results import StageSeconds  # noqa: E402

# The usage is `bge-pipeline`, not that of a module.
__package__ = None


def fix(where: type, name: str, value: Any) -> None:
    """Let an attribute of all instances have one value, whatever was measured."""
    setattr(where, name, property(lambda _: value, lambda _, __: None))


def main() -> None:
    """Run the command."""
    index_build.build_watcher = lambda *_: lambda: None  # no look at a build that may last a moment
    plan.texts_per_second = lambda *_: 250.0
    plan.measure_writing = lambda *_: WritingRates(4_000, 40_000.0, 5_000.0, 0.9)
    rollback.moment = lambda: "20261128T120000.000Z"
    for where, name, value in (
        (Plan, "disk_bytes", 1_100_000),
        (Plan, "table_bytes", 5_300_000),
        (Plan, "postgres_version", 180_000),
        (Plan, "pgvector_version", "0.8.1"),
        (Plan, "old_indexes", ("segments_embedding_idx (ivfflat, 2 MB)",)),
        (Status, "bytes", 5_300_000),
        (BackfillProgress, "rows_per_second", 250.0),
        (BackfillResult, "texts_per_second", 250.0),
        (SwapResult, "lock_milliseconds", 9.0),
        (StageSeconds, "encode", 0.004),
        (StageSeconds, "database", 0.002),
        (StageSeconds, "rerank", 0.0),
    ):
        fix(where, name, value)
    sys.argv[0] = "bge-pipeline"
    cli.main()


if __name__ == "__main__":
    main()
