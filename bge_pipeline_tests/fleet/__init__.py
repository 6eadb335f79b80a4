"""Many processes, one backfill: the commands of deploy/ as real processes, which tests kill."""
