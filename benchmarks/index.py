"""Vector indexes on the migrated column: build time, size, and the effort that a wanted recall takes.

Run: python -m benchmarks.index --rows 50000
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.expanded_table import expanded_table
from benchmarks.harness import Measurement, Results
from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import drop_index
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.vector_index import build_index
from bge_pipeline.quality.index_recall import recommend_for_recall
from bge_pipeline.settings import Settings

INDEXES: dict[str, dict[str, Any]] = {
    "IVFFlat": {"index_method": "ivfflat"},
    "IVFFlat, halfvec": {"index_method": "ivfflat", "index_element": "halfvec"},
    "HNSW": {"index_method": "hnsw"},
    "HNSW, halfvec": {"index_method": "hnsw", "index_element": "halfvec"},
}
WANTED_RECALLS = (0.90, 0.95, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the table")
    arguments = parser.parse_args()
    with expanded_table(arguments.rows) as migration:
        with open_service(migration) as service:
            backfill(migration, service.encoder)
        rows = [measure(migration.database, migration.settings, name) for name in INDEXES]
    Measurement(
        "index",
        f"{arguments.rows:,} rows of 384-d hashed-word vectors; stored vectors as queries, recall@20 against exact search.",
        [
            Results(
                "Index builds and the effort for a wanted recall",
                [
                    "index",
                    "build s",
                    "MB",
                    *(f"probes or ef_search for {wanted:.0%}" for wanted in WANTED_RECALLS),
                    "ms there",
                ],
                rows,
            )
        ],
        [
            "Hashed words are a harder case for an ANN index than a model's vectors: they have no clusters of meaning.",
            "The milliseconds are the median of one search at the last column's recall.",
        ],
    ).publish()


def measure(database: Database, settings: Settings, name: str) -> list[str]:
    """One row of the table; the index is dropped again."""
    chosen = settings.model_copy(update=INDEXES[name])
    built, _ = build_index(Migration(database, chosen))
    efforts, milliseconds = [], 0.0
    for wanted in WANTED_RECALLS:
        found = recommend_for_recall(database, chosen, wanted, column="embedding_384", samples=50)
        assert found is not None
        efforts.append(str(found.value) if found.reached else "not reached")
        milliseconds = found.points[-1].milliseconds
    with database.autocommit() as connection:
        drop_index(connection, settings.target_schema, built.name)
    return [name, f"{built.seconds:,.1f}", f"{built.bytes / 1e6:,.0f}", *efforts, f"{milliseconds:,.1f}"]


if __name__ == "__main__":
    main()
