"""The demo's settings name nothing of the user's, wherever the user names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_pipeline.demo.home import SCHEMA, demo_is_there, demo_settings, left_alone, names_a_table, questions_file
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.orchestration.dagster_home import environment, for_dagsters_commands, in_environment
from bge_pipeline.settings import Settings, load_settings

USERS = {
    "DATABASE_URL": "postgresql://me@host/production",
    "DAGSTER_DATABASE_URL": "postgresql://me@host/dagster",
    "EVAL_QUERIES": "/questions.jsonl",
    "TARGET_SCHEMA": "app",
    "TARGET_TABLE": "documents",
    "TARGET_ID_COLUMN": "key",
    "TARGET_TEXT_COLUMN": "body",
    "TARGET_EMBEDDING_COLUMN": "vector",
    "TARGET_TEXT": "title || body",
    "TARGET_WHERE": "tenant_id = 7",
    "QUERY_LOG": "app.searches.query",
    "COMPARE_QUERIES": "/asked.txt",
    "SEARCH_LANGUAGE": "app.german",
    "LEGACY_MODEL": "text-embedding-3-large",
    "LEGACY_DIMENSIONS": "3072",
    "OLD_EMBEDDING": "drop",
    "SERVER_SEARCH_EFFORT": "set",
    "APPLICATION_ROLE": "app",
    "BEGIN_NEXT_MIGRATION": "bundled",
    "SLACK_TOKEN": "xoxb-1",
    "SLACK_CHANNEL": "#search",
    "DAGSTER_URL": "https://dagster.host",
    "REPORTS_URL": "https://reports.host",
}


@pytest.fixture(params=["environment", ".env"])
def _users_variables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables = USERS | {"INDEX_METHOD": "hnsw"}
    if request.param == ".env":
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    for name, value in variables.items() if request.param == "environment" else ():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_users_variables")
def test_the_users_database_table_books_and_questions_are_left_out_and_the_rest_is_taken(tmp_path: Path) -> None:
    settings = demo_settings({})

    assert (settings.database_url, settings.dagster_database_url, settings.eval_queries) == (None, None, None)
    assert (settings.target_schema, settings.target_table) == (SCHEMA, "segments")
    assert (settings.target_id_column, settings.target_text_column) == ("id", "text")
    assert settings.target_embedding_column == "embedding"
    for name in USERS.keys() - {"DATABASE_URL", "TARGET_SCHEMA"}:
        assert getattr(settings, name.lower()) == Settings.model_fields[name.lower()].default
    assert settings.home == tmp_path / ".bge-pipeline" / "demo"
    assert (settings.index_method, settings.embedding_model) == ("hnsw", "bundled")
    assert left_alone() == sorted(USERS)


@pytest.mark.usefixtures("_users_variables")
def test_other_processes_are_told_of_the_demos_table_too() -> None:
    variables = environment(demo_settings({}))
    assert USERS.items().isdisjoint(variables.items())
    assert variables["TARGET_SCHEMA"] == SCHEMA


@pytest.mark.usefixtures("_users_variables")
def test_under_dagster_the_settings_are_read_again_and_nothing_of_the_users_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("target_text_template", "$title: $body")
    settings = demo_settings({})
    for variables in (environment(settings), for_dagsters_commands(environment(settings))):
        with in_environment(variables):
            assert load_settings().model_dump() == settings.model_dump()


@pytest.mark.usefixtures("_users_variables")
def test_a_database_that_is_given_by_name_is_the_one() -> None:
    settings = demo_settings({}, database_url="postgresql://me@elsewhere/db")
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://me@elsewhere/db"
    assert settings.target_schema == SCHEMA
    assert settings.home != demo_settings({}).home


def test_what_a_person_asks_for_by_name_is_taken_but_for_database_and_table() -> None:
    settings = demo_settings({"server_search_effort": "set", "legacy_dimensions": "768"})
    assert (settings.server_search_effort, settings.legacy_dimensions) == ("set", 768)


def test_an_endpoint_is_asked_for_no_model_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_PROVIDER", "openai")
    assert "embedding_model" not in demo_settings({}).model_fields_set


def test_a_model_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_MODEL", "BAAI/bge-small-en-v1.5")
    assert demo_settings({}).embedding_model == "BAAI/bge-small-en-v1.5"


@pytest.mark.parametrize("name", ["database_url", "target_schema", "target_table"])
def test_an_override_of_database_or_table_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name.upper()):
        demo_settings({name: "postgresql://me@host/db"})


def test_an_empty_database_url_is_an_error_and_not_the_embedded_server() -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        demo_settings({}, database_url="")


def test_the_demos_own_questions_are_asked_once_they_are_there() -> None:
    file = questions_file(demo_settings({}).home)
    file.parent.mkdir(parents=True)
    file.touch()
    assert demo_settings({}).eval_queries == file


def test_it_is_known_whether_there_is_a_demo_and_whether_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not demo_is_there(load_settings())
    (demo_settings({}).home / "postgres").mkdir(parents=True)
    assert demo_is_there(load_settings())
    assert not names_a_table(load_settings())
    assert names_a_table(load_settings(database_url="postgresql://me@host/db"))
    monkeypatch.setenv("TARGET_TABLE", "documents")
    assert names_a_table(load_settings())
