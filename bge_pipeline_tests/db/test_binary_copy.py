"""Vectors reach PostgreSQL bit by bit."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from bge_pipeline.database.binary_copy import copy_stream, staged_vectors, vector_fields
from bge_pipeline.database.ids import INTEGERS, UUIDS, OtherIds
from bge_pipeline_tests.support import parsed

pytestmark = pytest.mark.pgvector


def copied(database, id_type, ids, versions, vectors):
    kind = {"uuid": UUIDS, "bigint": INTEGERS, "text": OtherIds("text")}[id_type]
    with database.transaction() as connection:
        connection.exec_driver_sql(
            f"CREATE TEMP TABLE s (id {id_type}, version xid, digest uuid, v vector({vectors.shape[1]}))"
        )
        raw = connection.connection.dbapi_connection.cursor()
        digests = [bytes(15) + bytes([n]) for n in range(len(ids))]
        stream = staged_vectors(kind, ids, versions, digests, vectors)
        raw.copy_expert("COPY s FROM STDIN (FORMAT binary)", stream)
        raw.execute("SELECT array_agg(digest::text ORDER BY digest) FROM s")
        assert (raw.fetchone()[0] or []) == [str(uuid.UUID(bytes=digest)) for digest in digests]
        raw.execute("SELECT id::text, version::text, v::text FROM s")
        return raw.fetchall()


def test_integers_versions_and_vectors_come_out_as_they_went_in(database):
    vectors = np.random.default_rng(0).standard_normal((5, 384)).astype(np.float32)
    vectors[0, :4] = [0.0, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
    ids = [-(2**63), -1, 0, 1, 2**63 - 1]
    versions = [1, 2, 3, 2**31, 2**32 - 1]
    rows = copied(database, "bigint", ids, versions, vectors)
    assert [int(row[0]) for row in rows] == ids
    assert [int(row[1]) for row in rows] == versions
    found = np.array([parsed(row[2]) for row in rows], np.float32)
    assert (found.view(np.uint32)[:, 2:] == vectors.view(np.uint32)[:, 2:]).all()
    assert (found == vectors).all()


def test_uuids_come_out_as_they_went_in(database):
    ids = [str(uuid.UUID(int=n)) for n in (0, 1, 2**127 + 5, 2**128 - 1)]
    rows = copied(database, "uuid", ids, [1] * 4, np.eye(4, dtype=np.float32))
    assert [row[0] for row in rows] == ids
    assert [row[2] for row in rows] == ["[1,0,0,0]", "[0,1,0,0]", "[0,0,1,0]", "[0,0,0,1]"]


def test_texts_of_any_length_come_out_as_they_went_in(database):
    ids = ["", "a", "naïve 'quotes' \\ and\nlines", "本" * 300]
    rows = copied(database, "text", ids, [1, 2, 3, 4], np.eye(4, dtype=np.float32))
    assert [row[0] for row in rows] == ids
    assert [row[1] for row in rows] == ["1", "2", "3", "4"]
    assert [row[2] for row in rows] == ["[1,0,0,0]", "[0,1,0,0]", "[0,0,1,0]", "[0,0,0,1]"]


@pytest.mark.parametrize("id_type", ["bigint", "text"])
def test_no_rows_are_a_stream_too(database, id_type):
    assert copied(database, id_type, [], [], np.empty((0, 3), np.float32)) == []


def test_rows_of_several_fields_are_written_in_order(database):
    vectors = np.array([[1.5, -2.0]], np.float32)
    with database.transaction() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE s (name text, v vector(2))")
        raw = connection.connection.dbapi_connection.cursor()
        raw.copy_expert(
            "COPY s FROM STDIN (FORMAT binary)", copy_stream([("naïve".encode(), vector_fields(vectors)[0])])
        )
        raw.execute("SELECT name, v::text FROM s")
        assert raw.fetchall() == [("naïve", "[1.5,-2]")]
