"""A labelled corpus as a table that `Retriever` searches: passages, vectors of the configured model, both indexes."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from benchmarks.corpora import Corpus
from bge_pipeline.database.binary_copy import copy_stream, run_copy, vector_fields
from bge_pipeline.database.connection import Database
from bge_pipeline.database.indexes import recommended_lists
from bge_pipeline.database.notes import ColumnNote, note_statement
from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.search import create_text_index
from bge_pipeline.settings import Settings

_TABLE = """
CREATE TABLE {table} ({id} bigint PRIMARY KEY, {text} text NOT NULL, {embedding} vector({dimensions}) NOT NULL)
"""


def load_table(database: Database, settings: Settings, corpus: Corpus, service: EmbeddingsService, cache: Path) -> None:
    """Make the target table of `settings`: the corpus, an IVFFlat index as a migration makes it, and a text index.

    A row's id is the number of its passage, from 0.
    """
    target = TargetTable.from_settings(settings)
    vectors = passage_vectors(corpus, service, cache)
    rows = enumerate(zip(corpus.passages.values(), vector_fields(vectors), strict=True))
    stream = copy_stream((struct.pack(">q", row), passage.encode(), vector) for row, (passage, vector) in rows)
    note = ColumnNote("current", service.space.as_dict())
    with database.transaction() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        connection.execute(target.sql(_TABLE, dimensions=vectors.shape[1]))
        run_copy(connection, f"COPY {target} FROM STDIN (FORMAT binary)", stream)
        connection.execute(note_statement(target, target.embedding_column, note))
        lists = recommended_lists(len(vectors))
        connection.execute(
            target.sql(
                "CREATE INDEX ON {table} USING ivfflat ({embedding} vector_cosine_ops) WITH (lists = {lists})",
                lists=lists,
            )
        )
    create_text_index(database, settings)
    with database.autocommit() as connection:
        connection.execute(target.sql("VACUUM ANALYZE {table}"))


def judged_rows(corpus: Corpus) -> JudgedQueries:
    """The corpus's queries, judged by the ids of the rows that `load_table` makes."""
    row_of = {identifier: str(row) for row, identifier in enumerate(corpus.passages)}
    qrels = {
        query: {row_of[identifier]: grade for identifier, grade in grades.items()}
        for query, grades in corpus.judged.qrels.items()
    }
    return JudgedQueries(corpus.judged.queries, qrels)


def passage_vectors(corpus: Corpus, service: EmbeddingsService, cache: Path) -> NDArray[np.float32]:
    """Vectors float32 (passages, dimensions), kept in the cache by embedding space and texts."""
    texts = list(corpus.passages.values())
    key = json.dumps([service.space.as_dict(), texts], sort_keys=True)
    path = cache / "vectors" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, service.encode_texts(texts))
    vectors: NDArray[np.float32] = np.load(path)
    return vectors
