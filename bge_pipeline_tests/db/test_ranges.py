"""Ranges are cut by rows, not by ids, and cover every row once."""

from __future__ import annotations

import uuid
from dataclasses import replace
from itertools import pairwise

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.database import cut_points
from bge_pipeline.database.id_range import IdRange
from bge_pipeline.database.ids import INTEGERS, OTHERS, UUIDS
from bge_pipeline.database.pending import count_pending
from bge_pipeline.database.pending_reader import read_pending
from bge_pipeline.database.ranges import cut_ranges
from bge_pipeline.errors import BgePipelineError
from bge_pipeline_tests.support import SEGMENTS, as_it_stands, execute, scalar, wait_until

ODD = replace(SEGMENTS, table="odd")


def table_with(database, id_type, ids):
    execute(database, "DROP TABLE IF EXISTS odd")
    execute(database, f"CREATE TABLE odd (id {id_type} PRIMARY KEY, text text, embedding vector(2))")
    if ids:
        execute(database, f"INSERT INTO odd SELECT unnest(CAST(:ids AS {id_type}[])), 'a text'", ids=ids)


def cut(database, kind, rows, **keywords):
    with database.autocommit() as connection:
        return cut_ranges(connection, ODD, kind, rows, **keywords)


def ids_in(database, id_range):
    with database.autocommit() as connection:
        return [i for batch in read_pending(connection, ODD, "embedding", 7, id_range) for i in batch.ids]


INTEGER_IDS = st.integers(-(2**63), 2**63 - 1)
# Neither has a place in PostgreSQL's text.
TEXT_IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


@given(INTEGER_IDS, INTEGER_IDS)
def test_a_key_names_its_range(lower, upper):
    assert IdRange.from_key(IdRange(lower, upper, INTEGERS).key(7)) == IdRange(lower, upper, INTEGERS)


@given(st.uuids(), st.uuids())
def test_a_key_of_uuids_names_its_range(lower, upper):
    id_range = IdRange(str(lower), str(upper), UUIDS)
    assert IdRange.from_key(id_range.key(7)) == id_range


@given(st.none() | TEXT_IDS, TEXT_IDS)
def test_a_key_of_texts_names_its_range_and_is_safe(lower, upper):
    id_range = IdRange(lower, upper, OTHERS)
    key = id_range.key(7)
    assert IdRange.from_key(key) == id_range
    dg.StaticPartitionsDefinition([key])
    assert not set(key) & set(" '\"/\\?&#[],;$`<>()|*!")
    assert not key.endswith(".")


def test_a_key_can_be_read():
    assert IdRange(1, 25001, INTEGERS).key(1, digits=2) == "01_1-25000"
    assert IdRange(-5, 7, INTEGERS).key(2) == "00002_-5-6"
    assert IdRange(-5, -1, INTEGERS).key(2) == "00002_-5--2"
    assert IdRange(None, "notes/été 1", OTHERS).key(1) == "00001~~notes%2Fété%201"
    assert IdRange("", "a...b.", OTHERS).key(3) == "00003~%00~a%2E%2E.b%2E"


def test_a_key_of_an_earlier_version_names_its_range():
    key = "0000000000000000001_0000000000000025001"
    assert IdRange.from_key(key) == IdRange(1, 25001, INTEGERS)
    assert IdRange.from_key("00002_-5_7") == IdRange(-5, 7, INTEGERS)
    uuids = [str(uuid.UUID(int=n)) for n in (0, 5)]
    assert IdRange.from_key("_".join(uuids)) == IdRange(*uuids, UUIDS)


@given(st.lists(INTEGER_IDS, min_size=2, unique=True))
def test_keys_sort_as_their_ranges_do(starts):
    ranges = [IdRange(start, start + 1, INTEGERS) for start in sorted(starts)]
    keys = [id_range.key(number) for number, id_range in enumerate(ranges, start=1)]
    assert sorted(keys) == keys


@pytest.mark.parametrize("key", ["", "1", "1_2_3_4", "a_b", "2024-01-01", "~a~b", "1~a", "1~a~"])
def test_a_key_of_somebody_else_is_refused(key):
    with pytest.raises(BgePipelineError, match="expected a partition key"):
        IdRange.from_key(key)


@pytest.mark.pgvector
class TestCutting:
    def test_gaps_in_the_ids_do_not_matter(self, database):
        ids = [1, 2, 3, 1_000, 2_000_000, 2_000_001, 2**40]
        table_with(database, "bigint", ids)
        ranges = cut(database, INTEGERS, 3)
        assert [ids_in(database, r) for r in ranges] == [[1, 2, 3], [1_000, 2_000_000, 2_000_001], [2**40]]
        assert all(left.upper == right.lower for left, right in pairwise(ranges))

    def test_an_empty_table_has_no_ranges(self, database):
        table_with(database, "bigint", [])
        assert cut(database, INTEGERS, 3) == []

    def test_the_last_range_ends_above_the_last_row_and_later_rows_begin_another(self, database):
        table_with(database, "int", [1, 2, 3])
        (first,) = cut(database, INTEGERS, 10)
        assert first == IdRange(1, 4, INTEGERS)
        assert cut(database, INTEGERS, 10, above=first.upper) == []
        execute(database, "INSERT INTO odd VALUES (9, 'later'), (7, 'later')")
        assert cut(database, INTEGERS, 10, above=first.upper) == [IdRange(4, 10, INTEGERS)]

    @pytest.mark.parametrize(
        ("id_type", "ids"),
        [("smallint", [-(2**15), 0, 2**15 - 1]), ("int", [-(2**31), 2**31 - 1]), ("bigint", [-(2**63), 0, 2**63 - 1])],
    )
    def test_the_least_and_the_greatest_id_of_a_type_are_covered(self, database, id_type, ids):
        table_with(database, id_type, ids)
        ranges = cut(database, INTEGERS, 1)
        assert [ids_in(database, r) for r in ranges] == [[i] for i in ids]

    def test_ranges_of_uuids_cover_every_uuid_up_to_the_greatest(self, database):
        ids = sorted(str(uuid.UUID(int=n)) for n in [0, 1, 2**64, 2**100, 2**127, 2**128 - 2, 2**128 - 1])
        table_with(database, "uuid", ids)
        ranges = cut(database, UUIDS, 3)
        assert ranges[0].lower == str(uuid.UUID(int=0))
        assert [i for r in ranges for i in ids_in(database, r)] == ids
        assert all(left.upper == right.lower for left, right in pairwise(ranges))

    def test_a_uuid_that_arrives_below_the_least_one_is_covered(self, database):
        table_with(database, "uuid", [str(uuid.UUID(int=2**100 + n)) for n in range(4)])
        ranges = cut(database, UUIDS, 2)
        execute(database, "INSERT INTO odd VALUES (:id, 'later')", id=str(uuid.UUID(int=5)))
        assert str(uuid.UUID(int=5)) in ids_in(database, ranges[0])

    def test_pending_rows_of_a_range_are_counted_without_the_others(self, database):
        table_with(database, "bigint", list(range(10)))
        execute(database, "UPDATE odd SET embedding = '[1,2]' WHERE id = 3")
        with database.autocommit() as connection:
            assert count_pending(connection, ODD, "embedding", IdRange(2, 6, INTEGERS)) == 3
            assert count_pending(connection, ODD, "embedding") == 9


ROWS, OF_A_RANGE = 100_000, 5_000
TWENTY = ROWS // OF_A_RANGE
DENSE_IDS = "n", "bigint"
SPARSE_IDS = "n * 1000 + CASE WHEN n > 50000 THEN 1000000000000 ELSE 0 END", "bigint"
IN_ORDER_OF_TIME = "(n::bigint << 22) + n % 7", "bigint"
RANDOM_UUIDS = "md5(n::text)::uuid", "uuid"
TEXTS = "'document-' || md5(n::text)", "text"


@pytest.mark.pgvector
class TestCuttingALargeTable:
    """Where a table is too large to be counted; here that is a thousand rows."""

    @pytest.fixture(autouse=True)
    def _large(self, monkeypatch):
        monkeypatch.setattr(cut_points, "COUNTED_ROWS", 1_000)

    def make(self, database, expression, id_type, rows=ROWS):
        as_it_stands(database, "DROP TABLE IF EXISTS odd")
        as_it_stands(database, f"CREATE TABLE odd (id {id_type} PRIMARY KEY, text text, embedding vector(2))")
        as_it_stands(
            database, f"INSERT INTO odd SELECT {expression}, repeat('word ', 100) FROM generate_series(1, {rows}) n"
        )
        as_it_stands(database, "ANALYZE odd")

    def rows_of(self, database, ranges):
        with database.autocommit() as connection:
            return [count_pending(connection, ODD, "embedding", id_range) for id_range in ranges]

    def pages_read(self, database, act):
        """Pages of the table, and of its index, that `act` asked the server for, cached or not."""

        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

        def counted():
            with database.autocommit() as connection:
                connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            wait_until(lambda: not scalar(database, others))  # a session tells of what it read when it ends
            asked = "SELECT {0}_blks_hit + {0}_blks_read FROM pg_statio_user_tables WHERE relname = 'odd'"
            return [scalar(database, asked.format(kind)) for kind in ("heap", "idx")]

        database.engine.dispose()
        before = counted()
        result = act()
        database.engine.dispose()
        return result, [now - then for now, then in zip(counted(), before, strict=True)]

    @pytest.mark.parametrize(
        ("expression", "id_type", "kind"),
        [
            (*DENSE_IDS, INTEGERS),
            (*SPARSE_IDS, INTEGERS),
            (*IN_ORDER_OF_TIME, INTEGERS),
            (*RANDOM_UUIDS, UUIDS),
            (*TEXTS, OTHERS),
        ],
        ids=["dense", "sparse", "in order of time", "uuids", "texts"],
    )
    def test_few_pages_are_read_and_every_row_is_in_one_range_of_about_that_size(
        self, database, expression, id_type, kind
    ):
        self.make(database, expression, id_type)
        pages = scalar(database, "SELECT pg_relation_size('odd') / 8192")
        ranges, (heap, index) = self.pages_read(database, lambda: cut(database, kind, OF_A_RANGE))
        assert heap + index < pages / 5
        assert heap < TWENTY * cut_points.PAGES_OF_A_RANGE * 2
        sizes = self.rows_of(database, ranges)
        assert sum(sizes) == ROWS
        assert TWENTY * 0.8 <= len(sizes) <= TWENTY * 1.2
        assert max(sizes) < 3 * OF_A_RANGE
        assert all(left.upper == right.lower for left, right in pairwise(ranges))

    def test_of_dense_ids_no_row_is_read_and_no_range_is_twice_as_large(self, database):
        self.make(database, *DENSE_IDS)
        ranges, (heap, index) = self.pages_read(database, lambda: cut(database, INTEGERS, OF_A_RANGE))
        # The ends, the cuts and whether there is an id: an index of three levels, a page of the table for each at most.
        assert heap <= TWENTY + 5
        assert index <= 3 * (TWENTY + 5)
        assert max(self.rows_of(database, ranges)) <= cut_points.DENSE * OF_A_RANGE

    @pytest.mark.parametrize("of_type", ["bigint DEFAULT 0", "point DEFAULT '(1,1)'"])
    def test_a_column_of_the_table_that_is_named_point_is_no_cut(self, database, of_type):
        self.make(database, *DENSE_IDS)
        execute(database, f"ALTER TABLE odd ADD COLUMN point {of_type}")
        sizes = self.rows_of(database, cut(database, INTEGERS, OF_A_RANGE))
        assert len(sizes) == pytest.approx(TWENTY, abs=1)
        assert max(sizes) <= cut_points.DENSE * OF_A_RANGE

    def test_a_hole_in_the_ids_makes_no_empty_range(self, database):
        self.make(database, *DENSE_IDS)
        execute(database, "DELETE FROM odd WHERE id BETWEEN 20000 AND 60000")
        ranges = cut(database, INTEGERS, OF_A_RANGE)
        sizes = self.rows_of(database, ranges)
        assert sum(sizes) == ROWS - 40_001
        assert all(sizes)

    def test_rows_that_came_after_the_statistics_are_cut_too(self, database):
        self.make(database, *DENSE_IDS)
        execute(database, "INSERT INTO odd SELECT n, 'later' FROM generate_series(100001, 130000) n")
        execute(database, "INSERT INTO odd SELECT n, 'earlier' FROM generate_series(-999, 0) n")
        sizes = self.rows_of(database, cut(database, INTEGERS, OF_A_RANGE))
        assert sum(sizes) == ROWS + 31_000
        assert max(sizes) <= cut_points.DENSE * OF_A_RANGE

    def test_a_table_that_was_emptied_since_has_no_ranges(self, database):
        self.make(database, *DENSE_IDS, rows=20_000)
        execute(database, "DELETE FROM odd")
        assert cut(database, INTEGERS, OF_A_RANGE) == []
        self.make(database, *RANDOM_UUIDS, rows=20_000)
        execute(database, "DELETE FROM odd")
        assert cut(database, UUIDS, OF_A_RANGE) == []

    def test_a_table_without_statistics_is_counted(self, database):
        table_with(database, "bigint", list(range(1, 5_001)))
        execute(database, "UPDATE pg_class SET reltuples = -1 WHERE relname = 'odd'")
        assert self.rows_of(database, cut(database, INTEGERS, 1_000)) == [1_000] * 5
