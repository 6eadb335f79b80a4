"""How a vector index should be made, what its build takes, and how a dropped one comes back."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.indexes import (
    MEBIBYTE,
    IndexShape,
    build_memory_bytes,
    create_index_statement,
    definition_name,
    definition_on,
    hnsw_memory_bytes,
    indexes_on,
    ivfflat_memory_bytes,
    plan_index,
    recommended_lists,
)
from bge_pipeline_tests.support import SEGMENTS, execute, scalar


@pytest.mark.parametrize(
    ("rows", "lists"),
    [(0, 1), (999, 1), (50_000, 50), (1_000_000, 1_000), (1_000_001, 1_000), (4_000_000, 2_000), (100_000_000, 10_000)],
)
def test_lists_follow_the_rule_of_pgvector(rows, lists):
    assert recommended_lists(rows) == lists


def plan(rows=1_000_000, **overrides):
    defaults = {"method": "ivfflat", "element": "vector", "lists": None, "m": 16, "ef_construction": 64}
    return plan_index(rows, 384, **(defaults | overrides))


def test_a_memory_ceiling_reduces_the_lists_until_the_build_fits():
    free, tight = plan(), plan(max_memory_bytes=64 * MEBIBYTE)
    assert free.lists == 1_000
    assert tight.lists < 1_000
    assert tight.memory_bytes <= 64 * MEBIBYTE < ivfflat_memory_bytes(tight.lists * 10 // 9 + 2, 384, "vector")


def test_lists_that_were_asked_for_are_not_reduced():
    assert plan(lists=777, max_memory_bytes=MEBIBYTE).lists == 777


def test_a_build_that_can_do_with_less_memory_stays_under_the_ceiling():
    assert plan(method="hnsw", max_memory_bytes=64 * MEBIBYTE).memory_bytes == 64 * MEBIBYTE
    assert plan(rows=100, method="hnsw", max_memory_bytes=64 * MEBIBYTE).memory_bytes < 2 * MEBIBYTE


def test_half_precision_takes_less_memory():
    assert hnsw_memory_bytes(10_000, 384, 16, "halfvec") < hnsw_memory_bytes(10_000, 384, 16, "vector")
    assert ivfflat_memory_bytes(100, 384, "halfvec") < ivfflat_memory_bytes(100, 384, "vector")


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        ("(embedding vector_cosine_ops) WITH (lists='100')", "(NEW vector_cosine_ops) WITH (lists='100')"),
        ("(((embedding)::halfvec(8)) halfvec_l2_ops)", "(((NEW)::halfvec(8)) halfvec_l2_ops)"),
        ("(embedding) WHERE (embedding IS NOT NULL)", "(NEW) WHERE (NEW IS NOT NULL)"),
        ("(embedding) WHERE (kind = 'embedding'::text)", "(NEW) WHERE (kind = 'embedding'::text)"),
        ("(embedding) WHERE (embedding_kind = 1)", "(NEW) WHERE (embedding_kind = 1)"),
        ('(embedding) WHERE ("embedding kind" = 1)', '(NEW) WHERE ("embedding kind" = 1)'),
    ],
)
def test_a_definition_is_rewritten_for_the_column_s_new_name_and_nothing_else(body, renamed):
    head = "CREATE INDEX embedding ON public.embedding USING hnsw "
    assert definition_on(head + body, "embedding", "new one") == head + renamed.replace("NEW", '"new one"')


@pytest.mark.parametrize("column", ['my "vec"', "Vec", "vector", "a'b", "100%:x"])
def test_a_definition_is_rewritten_whatever_the_column_is_called(column):
    quoted = '"' + column.replace('"', '""') + '"' if column != "vector" else column
    definition = f"CREATE INDEX i ON t USING ivfflat ((({quoted})::vector(3)) vector_cosine_ops)"
    assert (
        definition_on(definition, column, "v")
        == 'CREATE INDEX i ON t USING ivfflat ((("v")::vector(3)) vector_cosine_ops)'
    )


@pytest.mark.parametrize(
    ("definition", "name"),
    [
        ("CREATE INDEX plain ON t USING ivfflat (v)", "plain"),
        ('CREATE INDEX "My ""odd"" INDEX" ON t USING ivfflat (v)', 'My "odd" INDEX'),
        ('CREATE UNIQUE INDEX "ключ" ON t USING btree (v)', "ключ"),
    ],
)
def test_the_name_is_read_from_a_definition(definition, name):
    assert definition_name(definition) == name


def test_the_memory_of_a_definition_is_that_of_its_lists():
    definition = "CREATE INDEX i ON t USING ivfflat (v vector_cosine_ops) WITH (lists='500')"
    assert build_memory_bytes(definition, 1536, 0) == ivfflat_memory_bytes(500, 1536, "vector")
    definition = "CREATE INDEX i ON t USING hnsw (v vector_cosine_ops) WITH (m='8', ef_construction='64')"
    assert build_memory_bytes(definition, 1536, 1_000) == hnsw_memory_bytes(1_000, 1536, 8, "vector")
    assert build_memory_bytes("CREATE INDEX i ON t USING diskann (v)", 1536, 1_000) == 0


@pytest.mark.pgvector
class TestOnAServer:
    @pytest.mark.parametrize(
        ("element", "lists", "dimensions"),
        [("vector", 300, 16), pytest.param("halfvec", 100, 256, marks=pytest.mark.pgvector("0.7"))],
    )
    def test_an_ivfflat_build_takes_the_memory_that_is_planned_for_it(self, database, element, lists, dimensions):
        execute(database, f"CREATE TABLE t (v {element}({dimensions}))")
        values = f"array_agg(random()) FROM generate_series(1, {dimensions}) WHERE n = n"
        rows = max(lists * 50, 10_000)
        execute(database, f"INSERT INTO t SELECT (SELECT {values})::{element} FROM generate_series(1, {rows}) n")
        planned = ivfflat_memory_bytes(lists, dimensions, element) // MEBIBYTE
        with database.autocommit() as connection:
            connection.exec_driver_sql(f"SET maintenance_work_mem = '{planned - 2}MB'")
            statement = f"CREATE INDEX ON t USING ivfflat (v {element}_cosine_ops) WITH (lists = {lists})"
            with pytest.raises(DBAPIError, match="memory required is"):
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"SET maintenance_work_mem = '{planned + 1}MB'")
            connection.exec_driver_sql(statement)
            connection.invalidate()

    @pytest.mark.pgvector("0.7")
    def test_the_indexes_of_a_column_are_found_among_all(self, database):
        execute(database, "CREATE INDEX by_half ON segments USING hnsw ((embedding::halfvec(1536)) halfvec_cosine_ops)")
        execute(database, "CREATE INDEX exact ON segments (id) WHERE embedding IS NULL")
        oid, number = execute(
            database,
            "SELECT attrelid, attnum FROM pg_attribute WHERE attrelid = 'segments'::regclass AND attname = 'embedding'",
        )[0]
        with database.autocommit() as connection:
            found = {index.name: (index.method, index.is_vector_index) for index in indexes_on(connection, oid, number)}
        assert found == {
            "by_half": ("hnsw", True),
            "exact": ("btree", False),
            "segments_embedding_idx": ("ivfflat", True),
        }

    @pytest.mark.parametrize("method", ["ivfflat", "hnsw"])
    @pytest.mark.parametrize("element", ["vector", pytest.param("halfvec", marks=pytest.mark.pgvector("0.7"))])
    def test_every_kind_of_index_that_is_promised_is_built_and_used(self, database, method, element):
        made = plan_index(
            300, 1536, method=method, element=element, lists=None, m=8, ef_construction=16, max_memory_bytes=None
        )
        with database.autocommit() as connection:
            connection.exec_driver_sql("DROP INDEX segments_embedding_idx")
            connection.execute(create_index_statement(SEGMENTS, "embedding", "the index", made))
            connection.exec_driver_sql("SET enable_seqscan = off")
            cast = "::halfvec(1536)" if element == "halfvec" else ""
            nearest = f"(SELECT embedding{cast} FROM segments WHERE id = 1)"
            rows = connection.exec_driver_sql(
                f"EXPLAIN SELECT id FROM segments ORDER BY embedding{cast} <=> {nearest} LIMIT 5"
            )
            assert any("the index" in row[0] for row in rows)
            connection.invalidate()
        definition = scalar(database, "SELECT pg_get_indexdef('\"the index\"'::regclass)")
        assert build_memory_bytes(definition, 1536, 300) == made.memory_bytes


@pytest.mark.parametrize(
    ("definition", "shape"),
    [
        ("CREATE INDEX i ON t USING hnsw (e vector_l2_ops) WITH (m='8')", IndexShape("hnsw", "vector", "l2", 8)),
        (
            "CREATE INDEX i ON t USING hnsw (((e)::halfvec(1536)) halfvec_cosine_ops) WITH (ef_construction='99')",
            IndexShape("hnsw", "halfvec", "cosine", None, 99),
        ),
        ("CREATE INDEX i ON t USING ivfflat (e) WITH (lists='5')", IndexShape("ivfflat", "vector", "l2")),
        ("CREATE INDEX i ON t USING ivfflat (e vector_ip_ops) WITH (lists='5')", IndexShape("ivfflat", "vector", "ip")),
        ("CREATE INDEX i ON t USING hnsw (e vector_cosine_ops) WHERE (id > 10)", None),
        ("CREATE INDEX i ON t USING hnsw (((binary_quantize(e))::bit(3)) bit_hamming_ops)", None),
        ("CREATE INDEX i ON t USING btree (e)", None),
    ],
)
def test_the_shape_of_an_index_follows_from_its_definition(definition, shape):
    assert IndexShape.of(definition) == shape
