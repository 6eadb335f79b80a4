"""Ids of every type and collation: read, cut into ranges and written by the order that their index has, or refused."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import id_as_text
from bge_pipeline.database.pending import pending_index_statement
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.quarantine import list_quarantined, quarantine_row, quarantine_statements
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.database.sql import quote
from bge_pipeline.database.update_statement import update_template
from bge_pipeline.errors import TargetTableError
from bge_pipeline_tests.db.keyed_rows import described, read, write_all, wrong_rows
from bge_pipeline_tests.roads import ROOT
from bge_pipeline_tests.support import NASTY_IDS, SEGMENTS, as_it_stands, execute, scalar

pytestmark = pytest.mark.pgvector

NOTES = replace(SEGMENTS, table="notes", embedding_column="v")
MADE_FOR = {
    "blind": "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
    "numeric_order": "CREATE COLLATION numeric_order (provider = icu, locale = 'en-u-kn-true')",
    "fast": "CREATE COLLATION fast (provider = builtin, locale = 'PG_UNICODE_FAST')",
    "citext": "CREATE EXTENSION citext",
    "code": "CREATE DOMAIN code AS text CHECK (value <> 'forbidden')",
    '"we{i}rd:type%s"': 'CREATE DOMAIN "we{i}rd:type%s" AS varchar(300)',
    "size": "CREATE TYPE size AS ENUM ('small', 'Large', 'it''s {odd}:name', 'a', 'b', 'c', 'd', 'e')",
}
"""What a type needs; skipped on servers that have no ICU, no such provider or no such extension."""
VALUES = {
    "text": NASTY_IDS,
    'text COLLATE "C"': NASTY_IDS,
    "text COLLATE fast": NASTY_IDS,
    "text COLLATE numeric_order": NASTY_IDS,
    "text COLLATE blind": NASTY_IDS,
    "varchar(300)": NASTY_IDS,
    "char(300)": [value for value in NASTY_IDS if value != " "],
    "citext": NASTY_IDS,
    "code": NASTY_IDS,
    '"we{i}rd:type%s"': NASTY_IDS,
    "size": ["small", "Large", "it's {odd}:name", "a", "b", "c", "d", "e"],
    "numeric(30, 2)": ["-1e25", "-1.50", "0", "0.01", "3", "1e25", "NaN"],
    "numeric": ["-1e100", "0.000000000000000000001", "7", "1e100", "Infinity"],
    "bytea": [r"\x", r"\x00", r"\x00ff", r"\x27", r"\x5c", r"\xdeadbeef"],
    "date": ["4713-01-01 BC", "0044-03-15 BC", "1969-12-31", "2026-11-28", "infinity", "-infinity"],
    "timestamp": ["1969-12-31 23:59:59.5", "2026-11-28 01:02:03.000001", "2026-11-28 01:02:03.000002", "infinity"],
    "timestamptz": ["1800-01-01 00:00+0", "2026-10-25 00:30+0", "2026-10-25 01:30+0", "2026-10-25 01:30:00.1+0"],
    "float8": ["-1e300", "0", "0.1", "0.30000000000000004", "0.3", "NaN"],
    "inet": ["10.0.0.1", "10.0.0.0/8", "::1"],
    "boolean": ["t", "f"],
    "bigint": ["-9223372036854775808", "-5", "0", "9223372036854775807"],
    "text[]": ["{}", '{a,"b c"}', "{NULL}"],
}


@pytest.fixture(params=VALUES)
def notes(request, database):
    """A table with ids of that type; the ids as text, in the order of the index."""
    for name, statement in MADE_FOR.items():
        if name in request.param.split():
            try:
                as_it_stands(database, statement)
            except DBAPIError as error:
                pytest.skip(str(error.orig))
    as_it_stands(database, f"CREATE TABLE notes (id {request.param} PRIMARY KEY, text text, v vector(2))")
    kind = request.param.partition(" COLLATE")[0].replace(":", r"\:")
    with database.transaction() as connection:
        for value in VALUES[request.param]:
            statement = f"INSERT INTO notes VALUES (CAST(:id AS {kind}), 'note ' || :text)"
            connection.execute(text(statement), {"id": value, "text": value})
        for statement in quarantine_statements(NOTES):
            connection.execute(statement)
    return [row[0] for row in as_it_stands(database, "SELECT id::text FROM notes ORDER BY notes.id")]


def update_plan(database, target, kind, settings="SELECT"):
    """How the server would find the rows of a batch, with the settings of which the writer knows nothing."""
    staging = ", ".join(f"{name} {sql_type}" for name, sql_type in kind.staging_columns)
    with database.transaction() as connection:
        connection.exec_driver_sql(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
            f"CREATE TEMP TABLE bge_pipeline_staging ({staging}, version xid, digest uuid, vector vector(2)); {settings}"
        )
        statement = target.sql("EXPLAIN " + update_template(kind, target.key), column="v")
        values = {"table": str(target), "column": "v", "number": 3}
        return "\n".join(connection.execute(statement, values).scalars())


def test_ranges_cover_every_row_once_in_the_order_of_the_index(database, notes):
    kind = described(database, NOTES).id_kind
    for rows in (1, 3, 100):
        with database.autocommit() as connection:
            ranges = cut_ranges(connection, NOTES, kind, rows)
        found = [sorted(read(database, NOTES, id_range)) for id_range in ranges]
        assert found == [sorted(notes[at : at + rows]) for at in range(0, len(notes), rows)]
        assert all(left.upper == right.lower for left, right in pairwise(ranges))
        assert [IdRange.from_key(r.key(1)).condition for r in ranges] == [r.condition for r in ranges]
    # What comes above the last range begins one of its own.
    with database.transaction() as connection:
        kept = connection.execute(text("DELETE FROM notes WHERE id::text = :id RETURNING text"), {"id": notes[-1]})
        words = kept.scalar_one()
        shorter = cut_ranges(connection, NOTES, kind, 100)
        insert = NOTES.sql(f"INSERT INTO {{table}} VALUES ({kind.of_column(':id')}, :words)")
        connection.execute(insert, {"id": notes[-1], "words": words})
        (later,) = cut_ranges(connection, NOTES, kind, 100, above=shorter[-1].upper)
        assert cut_ranges(connection, NOTES, kind, 100, above=later.upper) == []
    assert read(database, NOTES, later) == [notes[-1]]


def test_every_row_is_read_and_written_once(database, notes):
    table = described(database, NOTES)
    assert write_all(database, table) == len(notes)
    assert read(database, NOTES) == []
    assert wrong_rows(database) == 0
    # Once the index of pending rows is there they come through it, by id.
    as_it_stands(database, "UPDATE notes SET v = NULL")
    with database.autocommit() as connection:
        connection.execute(pending_index_statement(NOTES, "v", "pending"))
    assert read(database, NOTES) == notes
    assert write_all(database, table) == len(notes)
    assert wrong_rows(database) == 0


@pytest.mark.parametrize(
    ("id_type", "prepare"),
    [
        ("vector(1)", "SELECT"),
        ("citext", "CREATE EXTENSION citext SCHEMA extensions"),
        ('extensions."a {type}:x"', 'CREATE DOMAIN extensions."a {type}:x" AS varchar(9)'),
        ("grade", "CREATE TYPE extensions.grade AS ENUM ('1', '2', '3')"),
        ("named", "CREATE DOMAIN extensions.named AS extensions.vector"),
    ],
    ids=["of an extension", "citext", "domain", "enum", "domain over one of an extension"],
)
@pytest.mark.parametrize("key", ["id", "id, part"])
def test_a_type_that_is_on_no_search_path_of_the_role_is_found_by_its_index(database, id_type, prepare, key):
    as_it_stands(database, "CREATE SCHEMA extensions")
    as_it_stands(database, "ALTER EXTENSION vector SET SCHEMA extensions")
    try:
        as_it_stands(database, prepare)
    except DBAPIError as error:
        pytest.skip(str(error.orig))
    as_it_stands(database, f"ALTER DATABASE {quote(database.url.database)} SET search_path = ''")
    database.engine.dispose()
    as_it_stands(
        database,
        f"CREATE TABLE public.notes (id {id_type}, text text, v vector(2), part int DEFAULT 1, PRIMARY KEY ({key}))",
    )
    ids = ["[1]", "[2]", "[3]"] if "vector" in id_type + prepare else ["1", "2", "3"]
    for one in ids:
        as_it_stands(database, f"INSERT INTO public.notes (id, text) VALUES ('{one}', 'note {one}')")
    target = replace(NOTES, id_columns=tuple(key.split(", ")))
    table = described(database, target)
    assert update_plan(database, target, table.id_kind, "SET LOCAL search_path = ''").count("using notes_pkey") == 2
    assert write_all(database, table) == 3
    assert as_it_stands(database, "SELECT count(v) FROM public.notes") == [(3,)]


@pytest.mark.thorough
def test_rows_are_found_by_the_index_however_little_is_known_of_the_staging_table(database, notes):
    plan = update_plan(database, NOTES, described(database, NOTES).id_kind)
    assert plan.count("Index Cond: (") >= 2, plan
    assert plan.count("using notes_pkey") == 2, plan


@pytest.mark.thorough
def test_a_row_is_put_in_quarantine_and_left_alone(database, notes):
    with database.transaction() as connection:
        for batch in read_pending(connection, NOTES, "v", 100):
            for position in range(len(batch)):
                assert quarantine_row(connection, NOTES, batch, position, "no words")
    assert read(database, NOTES) == []
    with database.autocommit() as connection:
        assert sorted(row.row_id for row in list_quarantined(connection, NOTES, 100)) == sorted(notes)


@pytest.mark.parametrize(
    "value",
    [
        r"'\x00ff'::bytea",
        "1.50::numeric(20, 2)",
        "1e30::numeric",
        "0.0000000000::numeric",
        "'2026-11-28 01:02:03'::timestamp",
        "'2026-11-28 01:02:03.120'::timestamp",
        "'2026-11-28 01:02:03.12+00'::timestamptz",
        "'2026-11-28 01:02:03+00'::timestamptz",
        "'2026-11-28'::date",
        "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid",
        "'it''s'::varchar",
        "-5::bigint",
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_an_id_of_the_driver_is_written_as_postgres_writes_it(database, value, zone):
    with database.autocommit() as connection:
        connection.exec_driver_sql(f"SET TimeZone = '{zone}'")
        row = connection.exec_driver_sql(f"SELECT {value}, ({value})::text").one()
    assert id_as_text(row[0]) == row[1]


def refused(database, columns, *statements, target=NOTES):
    execute(database, f"CREATE TABLE notes ({columns})")
    for statement in statements:
        execute(database, statement)
    with database.autocommit() as connection, pytest.raises(TargetTableError) as error:
        describe_table(connection, target)
    assert error.value.state == "nothing was changed"
    return error.value.message, error.value.next_step


def run_proposed(database, next_step, beginning, column="id"):
    """Run the statements of a proposal as a person would, one by one; the table is then taken."""
    proposal = next(way for way in next_step.splitlines() if beginning in way)
    for statement in re.findall(r"(?:ALTER TABLE|CREATE UNIQUE INDEX)[^;]+;", proposal):
        with database.autocommit() as connection:
            connection.exec_driver_sql(statement)
    with database.autocommit() as connection:
        return describe_table(connection, replace(NOTES, id_columns=(column,)))


@pytest.mark.parametrize(
    ("columns", "statement", "complaint"),
    [
        ("id text NOT NULL, shard int", "SELECT 1", "no unique index of its own:"),
        (
            "id text, shard int, UNIQUE (id, shard)",
            "SELECT 1",
            "notes_id_shard_key is on 2 columns together (id, shard)",
        ),
        (
            "id text NOT NULL, shard int",
            "CREATE UNIQUE INDEX part ON notes (id) WHERE shard > 0",
            "part holds only rows with (shard > 0)",
        ),
        ("id text NOT NULL, shard int", "CREATE UNIQUE INDEX low ON notes (lower(id))", "low is on an expression"),
        (
            "id text NOT NULL, shard int",
            'CREATE UNIQUE INDEX other ON notes (id COLLATE "POSIX")',
            "other has another collation than the column",
        ),
        (
            "id text NOT NULL, shard int",
            "CREATE UNIQUE INDEX pattern ON notes (id text_pattern_ops)",
            "pattern has an operator class of another order",
        ),
    ],
)
def test_an_index_that_does_not_find_every_row_is_named(database, columns, statement, complaint):
    message, next_step = refused(database, f"{columns}, text text, v vector(2)", statement)
    assert complaint in message
    execute(database, "INSERT INTO notes (id, shard, text) VALUES ('a', 1, 'one'), ('b', 1, 'two')")
    table = run_proposed(database, next_step, "different in every row")
    assert table.columns["id"].not_null


def test_a_unique_id_that_may_be_null_is_refused_with_the_statements_that_mend_it(database):
    message, next_step = refused(database, "id text UNIQUE, text text, v vector(2)")
    assert "'id' may be NULL" in message
    assert run_proposed(database, next_step, "NOT NULL").columns["id"].not_null
    assert (
        scalar(
            database, "SELECT count(*) FROM pg_constraint WHERE conrelid = CAST('notes' AS regclass) AND contype = 'c'"
        )
        == 0
    )


def test_another_column_with_such_an_index_is_proposed(database):
    _, next_step = refused(database, "id text NOT NULL, code text NOT NULL UNIQUE, text text, v vector(2)")
    assert "set TARGET_ID_COLUMN=code" in next_step


def test_a_table_without_a_usable_key_gets_row_numbers_at_the_cost_that_is_told(database):
    _, next_step = refused(database, "id int, shard int, text text, v vector(2), UNIQUE (shard, id)")
    execute(database, "INSERT INTO notes SELECT n, 1, 'a note' FROM generate_series(1, 5) n")
    file = "SELECT pg_relation_filenode('notes')"
    before = scalar(database, file)
    table = run_proposed(database, next_step, "without touching the application", "row_number")
    assert table.id_kind.sql_type == "bigint"
    assert "writes the whole table anew" in next_step
    assert scalar(database, file) != before
    execute(database, "INSERT INTO notes VALUES (6, 1, 'as the application writes')")
    assert scalar(database, "SELECT max(row_number) FROM notes") == 6


def statements_of_the_guide(beginning):
    """The statements of the guide's block that begins so, without comments."""
    guide = (ROOT / "docs" / "migration-guide.md").read_text()
    (block,) = re.findall(rf"```sql\n({re.escape(beginning)}.*?)```", guide, re.DOTALL)
    return [statement for part in re.sub("--.*", "", block).split(";") if (statement := part.strip())]


def test_the_long_way_of_the_guide_writes_no_table_anew(database):
    refused(database, "id int, shard int, text text, v vector(2), UNIQUE (shard, id)")
    execute(database, "INSERT INTO notes SELECT n, 1, 'a note' FROM generate_series(1, 5) n")
    before = scalar(database, "SELECT pg_relation_filenode('notes')")
    statements = statements_of_the_guide("CREATE SEQUENCE")
    assert len(statements) == 11
    for statement in statements:
        with database.autocommit() as connection:
            connection.exec_driver_sql(statement)
    assert scalar(database, "SELECT pg_relation_filenode('notes')") == before
    execute(database, "INSERT INTO notes VALUES (6, 1, 'as the application writes')")
    assert scalar(database, "SELECT count(DISTINCT row_number) FROM notes") == 6
    with database.autocommit() as connection:
        assert describe_table(connection, replace(NOTES, id_columns=("row_number",))).id_kind.sql_type == "bigint"


def test_the_short_way_of_the_guide_is_what_the_refusal_says(database):
    _, next_step = refused(database, "id int, shard int, text text, v vector(2), UNIQUE (shard, id)")
    for statement in statements_of_the_guide("ALTER TABLE notes ADD COLUMN row_number bigint GENERATED"):
        assert statement.replace("notes", '"public"."notes"') in next_step
