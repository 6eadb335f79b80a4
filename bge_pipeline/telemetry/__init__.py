"""What a process tells of itself while it works: metrics, traces and log lines. Knows no database, no model and no Dagster."""
