"""Names that several modules share: assets, their group, owners and the pool of the encoder."""

SCHEMA = "schema_with_384_column"
BACKFILLED = "backfilled_embeddings"
SWAPPED = "swapped_index"
REPORT = "benchmark_report"

EXPAND_JOB = "expand_job"
BACKFILL_JOB = "backfill_job"
EMBED_PENDING_JOB = "embed_pending_job"
KEEP_OLD_CURRENT_JOB = "keep_old_current_job"

GROUP = "embedding_migration"
OWNERS = ["team:search"]
WITHOUT_OLD_MODEL_TAG = "bge_pipeline/without_old_model"
"""On a run that found rows waiting for the old model's vector and no such model, or KEEP_OLD_CURRENT off."""
LEFT_PENDING_TAG = "bge_pipeline/left_pending"
"""On a run that wrote no vector, though so many rows waited for one: they are locked, or edited all the while."""
BUDGET_SPENT_TAG = "bge_pipeline/budget_spent"
"""On a run that ended because it had cost as much as it may."""
POOL = "encoder"
"""Runs that load the model onto the device; the instance lets one go at a time."""
