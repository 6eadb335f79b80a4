"""PostgreSQL. Knows no model and no Dagster."""
