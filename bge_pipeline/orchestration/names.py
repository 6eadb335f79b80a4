"""Names that several modules share: assets, their group, owners and the pool of the encoder."""

SCHEMA = "schema_with_384_column"
BACKFILLED = "backfilled_embeddings"
SWAPPED = "swapped_index"
REPORT = "benchmark_report"

GROUP = "embedding_migration"
OWNERS = ["team:search"]
POOL = "encoder"
"""Runs that load the model onto the device; the instance lets one go at a time."""
