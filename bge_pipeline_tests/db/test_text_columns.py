"""The server alone says whether a text is one expression over one row, and which columns it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy.exc import DBAPIError

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.locks import is_lock_conflict
from bge_pipeline.database.text_columns import find_text_columns, require_expression
from bge_pipeline.errors import DatabaseUnavailable, MissingPrivilege, TargetTableError
from bge_pipeline.settings.text_template import template_expression
from bge_pipeline_tests.support import SEGMENTS, application, as_it_stands, scalar, schema_of

pytestmark = pytest.mark.pgvector


def made_of(database, expression):
    target = replace(SEGMENTS, text_expression=expression)
    with database.autocommit() as connection:
        describe_table(connection, target)
    with database.transaction() as connection:
        return find_text_columns(connection, target)


@pytest.mark.parametrize(
    ("expression", "columns"),
    [
        ("text", ("text",)),
        ("speaker_label || E'\\n' || text -- both", ("text", "speaker_label")),
        ("metadata->>'it''s: 100% {x}'", ("metadata",)),
        ("lower(text)) || (upper(text)", ("text",)),
        (r"coalesce(text, 'a:b \: %s')", ("text",)),
        ("CASE WHEN video_id <> '' THEN text END", ("video_id", "text")),
        (template_expression("${speaker_label}: $text for $$5, it's"), ("text", "speaker_label")),
    ],
)
def test_the_columns_of_an_expression_are_found(database, expression, columns):
    before = schema_of(database)
    assert set(made_of(database, expression).names) == set(columns)
    assert schema_of(database) == before


@pytest.mark.parametrize(
    "expression",
    [
        "text; DROP TABLE sources",
        "text); DROP TABLE sources; --",
        "text) IS NULL THEN 1 END FROM segments; DROP TABLE sources; SELECT CASE WHEN (text",
        "text) FROM segments --",
        "text) IS NULL THEN 1 END FROM segments; CREATE TABLE made (); SELECT CASE WHEN (text",
        "text) IS NULL); CREATE TABLE made (); SELECT ((text",
        "text)::text FROM segments UNION SELECT (text",
        "text) IS NULL THEN 1 WHEN (text",
        "SELECT text) UNION SELECT (text",
        "text), (text",
        "text /*",
        "text '",
        "text $$",
        "",
        "(SELECT max(text) FROM segments)",
        "max(text)",
        "row_number() OVER ()::text || text",
        "unnest(ARRAY[text])",
        "nosuch || text",
        "segments::text",
        "my_text(text)",
        "'the same for all'",
        "text || now()",
        "text || random()",
    ],
)
def test_what_is_not_one_immutable_expression_is_refused_and_nothing_of_it_is_run(database, expression):
    before = schema_of(database)
    with pytest.raises(TargetTableError, match="TARGET_TEXT") as refused:
        made_of(database, expression)
    assert refused.value.state == "nothing was changed"
    assert refused.value.next_step
    assert scalar(database, "SELECT count(*) FROM sources") > 0
    assert schema_of(database) == before


def test_a_refusal_of_a_stable_function_says_what_to_write_instead(database):
    with pytest.raises(TargetTableError, match="IMMUTABLE") as refused:
        made_of(database, "concat_ws(' ', speaker_label, text)")
    assert "coalesce(title, '')" in refused.value.next_step


def test_a_function_of_the_users_own_is_named_with_its_schema(database):
    as_it_stands(
        database,
        "CREATE FUNCTION my_text(t text) RETURNS text IMMUTABLE LANGUAGE sql RETURN upper(t)",
    )
    with pytest.raises(TargetTableError) as refused:
        made_of(database, "my_text(text)")
    assert "public.my_text" in refused.value.next_step
    assert made_of(database, "public.my_text(text)").names == ("text",)


def test_a_generated_column_is_traced_to_what_it_is_made_of(database):
    as_it_stands(
        database,
        "ALTER TABLE segments ADD COLUMN both_of text GENERATED ALWAYS AS (speaker_label || ': ' || text) STORED",
    )
    found = made_of(database, "both_of || video_id")
    assert set(found.names) == {"speaker_label", "text", "video_id"}
    assert set(found.generated) == {"both_of"}


def test_a_generated_column_that_is_not_stored_is_refused_with_what_to_set_instead(database):
    if scalar(database, "SELECT current_setting('server_version_num')::int") < 180_000:
        pytest.skip("PostgreSQL has generated columns that are not stored since 18")
    as_it_stands(database, "ALTER TABLE segments ADD COLUMN shown text GENERATED ALWAYS AS (upper(text)) VIRTUAL")
    with (
        database.transaction() as connection,
        pytest.raises(TargetTableError, match="TARGET_TEXT_COLUMN 'shown'") as refused,
    ):
        find_text_columns(connection, replace(SEGMENTS, text_column="shown"))
    assert "TARGET_TEXT takes the expression" in refused.value.next_step


def test_a_template_names_columns_and_takes_null_for_nothing(database):
    def text_of(template):
        sql = template_expression(template)
        return [
            row[0]
            for row in as_it_stands(
                database, f"SELECT {sql} FROM (VALUES ('a', 'b'), (NULL, 'b'), (NULL, NULL)) v (t, c)"
            )
        ]

    assert text_of("$t: it's $$5 ${c}!") == ["a: it's $5 b!", ": it's $5 b!", None]
    assert text_of("$t") == ["a", None, None]
    for wrong in ("no column", "$", "100$%", "$1"):
        with pytest.raises(ValueError, match="expected"):
            template_expression(wrong)


class TestWhatIsNotTheTextsFault:
    """`with_lock_retries` and `reachable` know what to do about it."""

    LOOKS = pytest.mark.parametrize("look", [require_expression, find_text_columns])

    def look_after(self, database, look, before):
        with database.transaction() as connection:
            before(connection)
            look(connection, replace(SEGMENTS, text_expression="speaker_label || text"))

    @LOOKS
    def test_a_lock_that_is_not_given(self, database, look):
        with application(database) as other:
            other.exec_driver_sql("LOCK TABLE segments")
            with pytest.raises(DBAPIError) as given_up:
                self.look_after(database, look, lambda ours: ours.exec_driver_sql("SET LOCAL lock_timeout = '50ms'"))
        assert is_lock_conflict(given_up.value)

    def test_a_privilege_that_is_missing(self, database):
        with pytest.raises(MissingPrivilege, match="permission denied for table segments"):
            self.look_after(
                database, require_expression, lambda ours: ours.exec_driver_sql("SET LOCAL ROLE pg_monitor")
            )

    @LOOKS
    def test_a_connection_that_ended(self, database, look):
        def end(ours):
            pid = ours.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with application(database) as other:
                other.exec_driver_sql("SELECT pg_terminate_backend(%s, 5000)", (pid,))

        with pytest.raises(DatabaseUnavailable, match="ended the connection"):
            self.look_after(database, look, end)
