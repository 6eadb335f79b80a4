"""Keys of several columns of any types: read, cut into ranges and written by the order of their index, or refused."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, product

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database import cut_points
from bge_pipeline.database.beside import find_beside
from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.pending import count_pending, pending_index_statement, quarantine_is_usable
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.quarantine import list_quarantined, quarantine_row, quarantine_statements, release
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.database.recent import sample_written_since
from bge_pipeline.database.sampling import sample_vectors, vectors_of
from bge_pipeline.database.sql import quote
from bge_pipeline.database.update_statement import update_template
from bge_pipeline.errors import BgePipelineError, ConfigurationError, TargetTableError
from bge_pipeline_tests.db.keyed_rows import described, read, write_all, wrong_rows
from bge_pipeline_tests.support import NASTY_IDS, SEGMENTS, as_it_stands, execute

pytestmark = pytest.mark.pgvector

NOTES = replace(SEGMENTS, table="notes", embedding_column="v")
TENANTS = ["00000000-0000-0000-0000-000000000000", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "f" * 32]
NUMBERS = ["-9223372036854775808", "-5", "0", "7", "9223372036854775807"]
KEYS = {
    "tenant and document": {"tenant_id uuid": TENANTS, "doc_id bigint": NUMBERS},
    "document and chunk": {"document_id text": NASTY_IDS[:12], "chunk_no int": ["0", "1"]},
    "a partition's key": {
        "id bigint": NUMBERS,
        "created_at timestamptz": ["1800-01-01 00:00+0", "2026-10-25 01:30:00.1+0", "2026-10-25 01:30+0"],
    },
    "names that need quotes": {
        '"Doc, Id" varchar(300)': NASTY_IDS[8:],
        '"we""i{r}d:%s" numeric(20, 2)': ["-1.50", "3"],
    },
    "three columns": {
        "region smallint": ["-1", "2"],
        "day date": ["2026-11-28", "1969-12-31"],
        "hash bytea": [r"\x00ff", r"\x"],
    },
    "yes and no": {"id uuid": TENANTS, "is_title boolean": ["f", "t"], "kind char(5)": ["a", "b"]},
    "blind for case": {"name text COLLATE blind": ["a", "B", "c"], "vector text": ["", "~", "~~", "."]},
}
BLIND = "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false)"


def make_notes(database, key):
    """A table with such a key, and the target that names it."""
    if any("blind" in column for column in key):
        try:
            as_it_stands(database, BLIND)
        except DBAPIError as error:
            pytest.skip(str(error.orig))
    names = tuple(re.match(r'"((?:[^"]|"")+)"|(\w+)', column)[0].strip('"').replace('""', '"') for column in key)
    columns = ", ".join(f"{column} NOT NULL" for column in key)
    as_it_stands(database, f"CREATE TABLE notes ({columns}, text text, v vector(2), PRIMARY KEY ({listed(names)}))")
    target = replace(NOTES, id_columns=names)
    with database.transaction() as connection:
        cursor = connection.connection.dbapi_connection.cursor()
        for number, values in enumerate(product(*key.values())):
            cursor.execute(
                f"INSERT INTO notes VALUES ({', '.join(['%s'] * len(key))}, %s)", (*values, f"note {number}")
            )
        for statement in quarantine_statements(target):
            connection.execute(statement)
    return target


def listed(names):
    return ", ".join(map(quote, names))


def ids_in_order(database, target):
    with database.autocommit() as connection:
        return list(connection.execute(target.sql("SELECT {id_text} FROM {table} ORDER BY {ids}")).scalars())


def _params():
    rest = ("three columns", "yes and no")
    return [
        pytest.param(key, id=name, marks=[pytest.mark.thorough] if name in rest else []) for name, key in KEYS.items()
    ]


@pytest.fixture(params=_params())
def notes(request, database):
    return make_notes(database, request.param)


@pytest.fixture
def chunks(database):
    return make_notes(database, KEYS["document and chunk"])


def test_ranges_cover_every_row_once_in_the_order_of_the_index(database, notes):
    kind = described(database, notes).id_kind
    ids = ids_in_order(database, notes)
    for rows in (1, 4, 100):
        with database.autocommit() as connection:
            ranges = cut_ranges(connection, notes, kind, rows)
            counted = [count_pending(connection, notes, "v", id_range) for id_range in ranges]
        expected = [sorted(ids[at : at + rows]) for at in range(0, len(ids), rows)]
        assert [sorted(read(database, notes, id_range)) for id_range in ranges] == expected
        assert counted == [len(part) for part in expected]
        assert all(left.upper == right.lower for left, right in pairwise(ranges))
        # A key stands for the same rows wherever it is read, the types of its columns unknown.
        again = [IdRange.from_key(r.key(number)) for number, r in enumerate(ranges, start=1)]
        assert [sorted(read(database, notes, id_range)) for id_range in again] == expected
        with database.autocommit() as connection:
            assert cut_ranges(connection, notes, kind, rows, above=again[-1].upper) == []


def test_a_large_table_is_cut_by_some_of_its_pages(database, monkeypatch):
    monkeypatch.setattr(cut_points, "COUNTED_ROWS", 1_000)
    target = replace(NOTES, id_columns=("tenant_id", "n"))
    as_it_stands(
        database, "CREATE TABLE notes (tenant_id uuid, n int, text text, v vector(2), PRIMARY KEY (tenant_id, n))"
    )
    rows = "SELECT md5((n % 7)::text)::uuid, n, repeat('word ', 100) FROM generate_series(1, 20000) n"
    as_it_stands(database, f"INSERT INTO notes {rows}")
    as_it_stands(database, "ANALYZE notes")
    kind = described(database, target).id_kind
    with database.autocommit() as connection:
        assert cut_points.cut_points(connection, target, kind, 4_000)
        ranges = cut_ranges(connection, target, kind, 4_000)
        sizes = [count_pending(connection, target, "v", id_range) for id_range in ranges]
    assert sum(sizes) == 20_000
    assert 4 <= len(sizes) <= 6
    assert max(sizes) < 8_000


def test_every_row_is_read_and_written_once(database, notes):
    table = described(database, notes)
    ids = ids_in_order(database, notes)
    assert write_all(database, table) == len(ids)
    assert read(database, notes) == []
    assert wrong_rows(database) == 0
    # Once the index of pending rows is there they come through it, by id.
    as_it_stands(database, "UPDATE notes SET v = NULL")
    with database.autocommit() as connection:
        connection.execute(pending_index_statement(notes, "v", "pending"))
    assert read(database, notes) == ids
    assert write_all(database, table) == len(ids)
    assert wrong_rows(database) == 0


def test_rows_and_ranges_are_found_by_the_index(database, notes):
    kind = described(database, notes).id_kind
    key = ", ".join(f"{name} {sql_type}" for name, sql_type in kind.staging_columns)
    with database.transaction() as connection:
        (first, *_) = cut_ranges(connection, notes, kind, 4)
        connection.exec_driver_sql(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
            f"CREATE TEMP TABLE bge_pipeline_staging ({key}, version xid, digest uuid, vector vector(2))"
        )
        statement = notes.sql("EXPLAIN " + update_template(kind, notes.key), column="v")
        plan = "\n".join(connection.execute(statement, {"table": str(notes), "column": "v", "number": 3}).scalars())
        in_range = notes.sql(f"EXPLAIN SELECT FROM {{table}} t WHERE {first.condition} ORDER BY {{t_ids}} LIMIT 4")
        of_range = "\n".join(connection.execute(in_range, first.values).scalars())
    assert plan.count("Index Cond: (") >= 2, plan
    assert plan.count("using notes_pkey") == 2, plan
    assert "Index Cond: (ROW(" in of_range, of_range
    assert "Sort" not in of_range, of_range


def test_a_row_is_put_in_quarantine_by_every_column_of_its_key_and_released_by_its_id(database, notes):
    ids = ids_in_order(database, notes)
    with database.transaction() as connection:
        for batch in read_pending(connection, notes, "v", 100):
            for position in range(len(batch)):
                assert quarantine_row(connection, notes, batch, position, "no words")
                assert quarantine_row(connection, notes, batch, position, "again")
    assert read(database, notes) == []
    with database.autocommit() as connection:
        connection.exec_driver_sql("SET TimeZone = 'Asia/Kolkata'")
        assert count_pending(connection, notes, "v") == 0, "whatever the session's settings are"
        connection.exec_driver_sql("RESET TimeZone")
        found = list_quarantined(connection, notes, 100)
        assert sorted(row.row_id for row in found) == sorted(ids)
        assert {row.error for row in found} == {"again"}
        assert release(connection, notes, [ids[0], ids[-1]]) == 2
    assert sorted(read(database, notes)) == sorted([ids[0], ids[-1]])


def test_samples_name_rows_as_searches_do(database, notes):
    write_all(database, described(database, notes))
    with database.autocommit() as connection:
        sample = sample_vectors(connection, notes, ["v"], 5)
        again = vectors_of(connection, notes, ["v"], sample.ids)
        recent = sample_written_since(connection, notes, "v", 3, rows=30)
    assert len(sample) == 5
    assert dict(zip(again.ids, again.texts, strict=True)) == dict(zip(sample.ids, sample.texts, strict=True))
    assert set(recent.batch.ids) <= set(ids_in_order(database, notes))
    assert len(recent) == len(set(recent.batch.ids)) > 0


def test_ids_are_released_with_numbers_as_numbers_and_what_is_none_is_refused(database, chunks):
    with database.transaction() as connection:
        for batch in read_pending(connection, chunks, "v", 100):
            for position in range(len(batch)):
                quarantine_row(connection, chunks, batch, position, "no words")
        assert release(connection, chunks, ['["doc_1", 1]', '["it\'s","0"]', '["doc_1", 99]']) == 2
        for wrong in ("doc_1", '["doc_1"]', '{"document_id": "doc_1"}', '["doc_1", 1, 2]'):
            with pytest.raises(ConfigurationError, match=r"a JSON array of 2 values \(document_id, chunk_no\)"):
                release(connection, chunks, [wrong])


def test_a_quarantine_of_another_key_is_made_anew(database, chunks):
    by_row = replace(chunks, id_columns=("chunk_no",))
    with database.transaction() as connection:
        for batch in read_pending(connection, chunks, "v", 1):
            quarantine_row(connection, chunks, batch, 0, "no words")
        assert quarantine_is_usable(connection, chunks)
        assert not quarantine_is_usable(connection, by_row)
        for statement in quarantine_statements(by_row, find_beside(connection, by_row.schema, by_row.quarantine_table)):
            connection.execute(statement)
        assert quarantine_is_usable(connection, by_row)
        assert not quarantine_is_usable(connection, chunks)
    assert len(read(database, chunks)) == 24


@pytest.mark.parametrize(
    ("key", "bounds"),
    [
        (("acme", 17), "01~acme~3~~acme~17"),
        (("", 17), "01~acme~3~~%00~17"),
        (("a~b/c", -1), "01~acme~3~~a%7Eb%2Fc~-1"),
        (("..", "é"), "01~acme~3~~%2E%2E~é"),
    ],
)
def test_partition_keys_can_be_read(database, key, bounds):
    kind = described(database, make_notes(database, KEYS["document and chunk"])).id_kind
    name = IdRange(("acme", 3), key, kind).key(1, digits=2)
    assert name == bounds
    again = IdRange.from_key(name)
    assert (again.lower, again.upper) == (("acme", "3"), tuple(map(str, key)))
    first = IdRange.from_key(IdRange(None, key, kind).key(1))
    assert (first.lower, first.upper) == (None, tuple(map(str, key)))


def test_a_range_of_another_key_is_refused_by_name(database):
    kind = described(database, make_notes(database, KEYS["document and chunk"])).id_kind
    IdRange.from_key("01~~~acme~17").require_columns(kind)
    for key in ("01_1-100", "01~~acme", "01~~~acme~17~3"):
        with pytest.raises(BgePipelineError, match="a key of 2 columns"):
            IdRange.from_key(key).require_columns(kind)


def refused(database, columns, *statements, names=("id", "shard")):
    execute(database, f"CREATE TABLE notes ({columns}, text text, v vector(2))")
    for statement in statements:
        execute(database, statement)
    with database.autocommit() as connection, pytest.raises(TargetTableError) as error:
        describe_table(connection, replace(NOTES, id_columns=names))
    assert error.value.state == "nothing was changed"
    return error.value.message, error.value.next_step


def run_proposed(database, next_step, beginning, *names):
    """Run the statements of a proposal as a person would, one by one; the table is then taken."""
    proposal = next(way for way in next_step.splitlines() if beginning in way)
    for statement in re.findall(r"(?:ALTER TABLE|CREATE UNIQUE INDEX)[^;]+;", proposal):
        with database.autocommit() as connection:
            connection.exec_driver_sql(statement)
    return described(database, replace(NOTES, id_columns=names))


def test_columns_in_another_order_than_the_index_are_refused_with_the_order(database):
    message, next_step = refused(database, "id int, shard int, PRIMARY KEY (shard, id)")
    assert "notes_pkey is on 2 columns together (shard, id)" in message
    assert "set TARGET_ID_COLUMN=shard,id, which has such an index" in next_step


@pytest.mark.parametrize(
    ("columns", "statement", "complaint"),
    [
        (
            "id text NOT NULL, shard int NOT NULL",
            "SELECT 1",
            '\'id,shard\' of "public"."notes" has no unique index of its own:',
        ),
        ("id text, shard int", "SELECT 1", "no unique index of its own:"),
        (
            "id text NOT NULL, shard int",
            "CREATE UNIQUE INDEX part ON notes (id, shard) WHERE shard > 0",
            "part holds only rows with (shard > 0)",
        ),
        (
            "id text NOT NULL, shard int",
            "CREATE UNIQUE INDEX low ON notes (lower(id), shard)",
            "low is on an expression",
        ),
        (
            "id text NOT NULL, shard int",
            'CREATE UNIQUE INDEX other ON notes (shard, id COLLATE "POSIX")',
            "other has another collation than the column",
        ),
        (
            "id text NOT NULL, shard int",
            "CREATE UNIQUE INDEX pattern ON notes (shard, id text_pattern_ops)",
            "pattern has an operator class of another order",
        ),
    ],
)
def test_an_index_that_does_not_find_every_row_is_named(database, columns, statement, complaint):
    message, next_step = refused(database, columns, statement)
    assert complaint in message
    execute(database, "INSERT INTO notes (id, shard, text) VALUES ('a', 1, 'one'), ('a', 2, 'two')")
    table = run_proposed(database, next_step, "are together different in every row", "id", "shard")
    assert table.columns["shard"].not_null


def test_a_unique_index_whose_columns_may_be_null_gets_the_statements_that_mend_it(database):
    message, next_step = refused(
        database, "id text NOT NULL, shard int, page int, UNIQUE (id, shard, page)", names=("id", "shard", "page")
    )
    assert "'shard', 'page' may be NULL" in message
    table = run_proposed(database, next_step, "NOT NULL", "id", "shard", "page")
    assert table.columns["shard"].not_null
    assert table.columns["page"].not_null


@pytest.mark.parametrize(
    ("columns", "advice", "beginning", "names"),
    [
        ("tenant uuid, doc int, PRIMARY KEY (tenant, doc)", "set TARGET_ID_COLUMN=tenant,doc", None, None),
        ("nr int PRIMARY KEY", "set TARGET_ID_COLUMN=nr", None, None),
        ("a int, b int, UNIQUE (a, b)", "then TARGET_ID_COLUMN=a,b", "is never NULL", ("a", "b")),
        ("a int", "then TARGET_ID_COLUMN=row_number", "without touching", ("row_number",)),
    ],
)
def test_where_the_column_is_not_there_the_key_that_is_is_proposed(database, columns, advice, beginning, names):
    message, next_step = refused(database, columns, names=("id",))
    assert "has no TARGET_ID_COLUMN 'id'" in message
    assert advice in next_step
    if beginning is not None:
        execute(database, "INSERT INTO notes (a, text) SELECT 1, 'a note' WHERE false")
        assert run_proposed(database, next_step, beginning, *names).id_kind is not None


def test_columns_beside_the_key_in_its_index_do_not_count(database):
    execute(database, "CREATE TABLE notes (a int, b text, text text, v vector(2), PRIMARY KEY (a, b) INCLUDE (text))")
    assert described(database, replace(NOTES, id_columns=("a", "b"))).id_kind.staging_columns == [
        ("id", "bigint"),
        ("id_2", "text"),
    ]


def test_an_id_as_text_is_the_same_by_every_road(database):
    values = (
        "1.50::numeric, true, '2026-11-28 01:02:03.120+00'::timestamptz, 'say \"é\" \\ 🙂'::text, E'\\n\\x01'::text"
    )
    with database.autocommit() as connection:
        row = connection.exec_driver_sql(f"SELECT {values}").one()
        texts = connection.exec_driver_sql(
            f"SELECT json_build_array({', '.join(f'({value})::text' for value in values.split(', '))})::text"
        ).scalar_one()
        assert connection.execute(
            text("SELECT CAST(:made AS text) = :wanted"), {"made": id_as_text(tuple(row)), "wanted": texts}
        ).scalar_one()
