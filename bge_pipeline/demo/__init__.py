"""The sample corpus, its questions, and the embedded PostgreSQL."""
