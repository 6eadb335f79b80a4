"""Identifiers and values become SQL in one place; nothing that stands in a name is ever run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sql import MAX_IDENTIFIER_BYTES, quote, render, shortened, sql, with_values

NASTY_NAMES = [
    "Order Notes",
    'say "hello"',
    "it's",
    "100%",
    "%(name)s",
    "%s",
    ":lower",
    "a:b",
    "a::text",
    r"back\slash",
    r"back\:slash",
    "{table}",
    "{",
    "}}",
    "$$",
    "$1",
    'x"; DROP TABLE segments; --',
    "/* comment",
    "-- comment",
    "select",
    "naïve ключ 鍵",
    "new\nline",
    "tab\t",
]

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: len(name.encode()) <= MAX_IDENTIFIER_BYTES
)


@pytest.mark.pgvector
class TestNamesAreOnlyNames:
    @pytest.fixture(scope="class")
    def shared(self, server_url):
        with Database(server_url) as database:
            yield database

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(first=names, second=names)
    def test_any_two_names_arrive_as_they_were_given(self, shared, first, second):
        statement = sql("SELECT 1 AS {first}, CAST(:value AS text) AS {second}", first=first, second=second)
        with shared.autocommit() as connection:
            result = connection.execute(statement, {"value": "x%:{}"})
            assert [column.name for column in result.cursor.description] == [first, second]
            assert result.one()[1] == "x%:{}"

    @pytest.mark.parametrize("name", NASTY_NAMES)
    def test_a_nasty_name_survives_a_bound_value_and_a_rendered_one(self, shared, name):
        statement = with_values(sql("SELECT :value AS {name}", name=name), value=name)
        with shared.autocommit() as connection:
            assert connection.execute(statement).one() == (name,)
            raw = connection.connection.dbapi_connection.cursor()
            raw.execute(render(statement))
            assert raw.fetchone() == (name,)
            assert raw.description[0].name == name


def test_a_qualified_name_is_quoted_part_by_part():
    assert quote("public", 'Order "Notes"') == '"public"."Order ""Notes"""'


def test_a_number_stands_as_it_is():
    assert str(sql("vector({dimensions})", dimensions=384)) == "vector(384)"


def test_a_name_that_fits_is_left_alone():
    assert shortened("x" * 63) == "x" * 63


@given(st.text(min_size=20, max_size=90))
def test_a_shortened_name_fits_and_is_stable(name):
    assert len(shortened(name).encode()) <= MAX_IDENTIFIER_BYTES
    assert shortened(name) == shortened(name)


def test_two_long_names_stay_apart():
    assert shortened("x" * 70 + "a") != shortened("x" * 70 + "b")


def test_cutting_a_name_does_not_cut_a_character():
    assert shortened("鍵" * 30).encode().decode().startswith("鍵鍵")
