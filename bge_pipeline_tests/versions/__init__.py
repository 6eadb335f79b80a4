"""The PostgreSQL, pgvector and Python on which the tests ran: `make test-servers`, `make test-pythons`, docs/versions.md."""
