"""Text to vectors. Knows no database and no Dagster."""
