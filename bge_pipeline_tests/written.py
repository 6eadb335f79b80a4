"""How often each row's new vector was committed, as the table itself notes it."""

from __future__ import annotations

from bge_pipeline.database.connection import Database
from bge_pipeline_tests.support import execute


def count_writes(database: Database) -> None:
    """Note every commit of a new vector from now on, in a table of its own."""
    execute(database, "CREATE TABLE writes (id bigint, txid bigint)")
    execute(
        database,
        "CREATE FUNCTION count_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.embedding_384 IS NOT NULL THEN INSERT INTO writes VALUES (NEW.id, txid_current()); END IF; "
        "RETURN NEW; END $$",
    )
    execute(
        database,
        "CREATE TRIGGER counts AFTER UPDATE OF embedding_384 ON segments FOR EACH ROW EXECUTE FUNCTION count_write()",
    )


def written(database: Database) -> tuple[int, int]:
    """Vectors that were committed since, and the rows that they are of."""
    ((writes, rows),) = execute(database, "SELECT count(*), count(DISTINCT id) FROM writes")
    return writes, rows
