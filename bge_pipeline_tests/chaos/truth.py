"""What must be true of the table after a round, whatever happened in it."""

from __future__ import annotations

import numpy as np

from bge_pipeline.database.connection import Database
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline_tests.chaos.application import Row
from bge_pipeline_tests.support import columns_of, execute, parsed, scalar

OLD_DIMENSIONS = 32
OLD_COLUMN = f"embedding_{OLD_DIMENSIONS}"
OLD = HashingEncoder(OLD_DIMENSIONS, seed=7)
NEW = HashingEncoder()

_INDEXES = """
SELECT c.relname, m.amname, i.indisvalid, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am m ON m.oid = c.relam LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = 'segments'::regclass
"""
_RELATIONS = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'S', 'p') AND relnamespace = 'public'::regnamespace
"""
_FUNCTIONS = """
SELECT proname FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""
_OTHERS = "application_name LIKE 'bge-pipeline%' AND datname = current_database() AND pid <> pg_backend_pid()"
_SESSIONS = f"SELECT application_name, state, query FROM pg_stat_activity WHERE {_OTHERS}"
_LOCKS = """
SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
WHERE locktype = 'advisory' AND datname = current_database()
"""


def vectors_of(texts: list[str], encoder: HashingEncoder) -> np.ndarray:
    """The vector of each text."""
    return encoder.encode(encoder.tokenize(texts))


def faults_of(
    database: Database, ledger: dict[int, Row], old_vectors: dict[int, str], method: str, *, retired: bool
) -> list[str]:
    """Everything that is not as it must be; no sessions of ours but `database` may be left.

    Args:
        database: where the table is.
        ledger: the rows that the application committed.
        old_vectors: the old vectors of rows whose text nobody changed, by id.
        method: of the old index, which the new one has too.
        retired: whether the old column has been dropped.
    """
    return [
        *_wrong_rows(database, ledger),
        *_wrong_vectors(database),
        *([] if retired else _lost_old_vectors(database, old_vectors)),
        *_wrong_indexes(database, method),
        *_left_behind(database, retired=retired),
    ]


def _wrong_rows(database: Database, ledger: dict[int, Row]) -> list[str]:
    found = {row[0]: Row(row[1], row[2]) for row in execute(database, "SELECT id, text, label FROM segments")}
    wrong = [key for key in found.keys() | ledger.keys() if found.get(key) != ledger.get(key)]
    return [f"row {key} is {found.get(key)}, and {ledger.get(key)} was committed" for key in sorted(wrong)]


def _wrong_vectors(database: Database) -> list[str]:
    rows = execute(database, "SELECT id, text, embedding::text FROM segments ORDER BY id")
    empty = [row for row in rows if not row[1].strip()]
    full = [row for row in rows if row[1].strip()]
    wrong = [f"row {row[0]} has no text, and a vector" for row in empty if row[2] is not None]
    wrong += [f"row {row[0]} has no vector" for row in full if row[2] is None]
    embedded = [row for row in full if row[2] is not None]
    if columns_of(database)["embedding"] != f"vector({NEW.space.dimensions})":
        return [*wrong, f"search reads {columns_of(database)['embedding']}"]
    expected = vectors_of([row[1] for row in embedded], NEW)
    stored = np.array([parsed(row[2]) for row in embedded], np.float32)
    same = np.isclose(stored, expected, atol=1e-6).all(axis=1)
    return wrong + [
        f"row {row[0]} has another text's vector" for row, right in zip(embedded, same, strict=True) if not right
    ]


def _lost_old_vectors(database: Database, old_vectors: dict[int, str]) -> list[str]:
    found = dict(execute(database, f"SELECT id, {OLD_COLUMN}::text FROM segments"))
    lost = [key for key, vector in old_vectors.items() if found.get(key) != vector]
    return [f"row {key} has lost its old vector, and its text is what it was" for key in lost]


def _wrong_indexes(database: Database, method: str) -> list[str]:
    indexes = execute(database, _INDEXES)
    wrong = [f"index {name} is invalid" for name, _, valid, _ in indexes if not valid]
    searched = [
        (name, found) for name, found, _, column in indexes if found in ("ivfflat", "hnsw") and column == "embedding"
    ]
    if [found for _, found in searched] != [method]:
        wrong.append(f"expected one {method} index on the searched column, found {searched}")
    wrong += [f"index {name} is left" for name, _, _, _ in indexes if "_ccnew" in name or "_ccold" in name]
    return wrong


def _left_behind(database: Database, *, retired: bool) -> list[str]:
    columns = {"id", "text", "label", "embedding"} | (set() if retired else {OLD_COLUMN})
    relations = {
        "segments",
        "segments_embedding_quarantine",
        "segments_embedding_journal",
        "segments_embedding_journal_number_seq",
        "bge_pipeline_alembic_version",
    }
    wrong = []
    if (found := set(columns_of(database))) != columns:
        wrong.append(f"the table's columns are {sorted(found)}")
    if left := {row[0] for row in execute(database, _RELATIONS)} - relations:
        wrong.append(f"left behind: {sorted(left)}")
    if (left := {row[0] for row in execute(database, _FUNCTIONS)}) != {"zz_segments_embedding_stale"}:
        wrong.append(f"functions: {sorted(left)}")
    if left := execute(database, _SESSIONS):
        wrong.append(f"sessions of ours are left: {left}")
    if left := scalar(database, _LOCKS):
        wrong.append(f"{left} advisory locks are left")
    if left := execute(database, "SELECT row_id, error FROM segments_embedding_quarantine"):
        wrong.append(f"in quarantine: {left}")
    return wrong
