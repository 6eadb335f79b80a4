"""Settings: every variable is validated once, and what is wrong is said in words, without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_pipeline.cli.env_file import write_env
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.settings import Settings, load_settings, misspelled_names, names_set, settings_of_file
from bge_pipeline.settings.column_list import join_columns, split_columns


def complaint(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_the_defaults_are_those_that_are_promised():
    settings = load_settings()
    assert (settings.target_schema, settings.target_table) == ("public", "segments")
    assert (settings.target_id_column, settings.target_text_column) == ("id", "text")
    assert (settings.target_embedding_column, settings.embedding_dimensions) == ("embedding", 384)
    assert settings.database_url is None
    assert (settings.old_embedding, settings.old_index, settings.dependents) == ("keep", "keep", "refuse")
    assert (settings.backfill_batch_rows, settings.backfill_max_attempts) == (1_000, 3)


def test_a_file_is_read_and_the_environment_wins(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("TARGET_TABLE=from_file\nTARGET_SCHEMA=from_file\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("TARGET_TABLE", "from_environment")
    settings = load_settings()
    assert (settings.target_schema, settings.target_table) == ("from_file", "from_environment")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("read", [load_settings, misspelled_names, lambda: settings_of_file(Path(".env"))])
def test_a_file_in_another_encoding_is_named_and_not_repeated(tmp_path, monkeypatch, encoding, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("EMBEDDING_API_KEY=gehéim\n".encode(encoding))
    with pytest.raises(ConfigurationError, match=r"\.env: expected a file in UTF-8") as refused:
        read()
    assert "geh" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that root cannot read either")
@pytest.mark.parametrize("read", [load_settings, misspelled_names, names_set, lambda: settings_of_file(Path(".env"))])
def test_a_file_that_this_user_may_not_read_is_one_error_that_names_it(tmp_path, read):
    (tmp_path / ".env").symlink_to("/proc/self/mem")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: Input/output error") as refused:
        read()
    assert refused.value.exit_code == 2


def test_what_a_process_was_started_with_wins_over_an_env_file_that_was_put_over_it(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("TARGET_TABLE=from_file\nPARTITION_ROWS=7\n")
    for name, value in {"TARGET_TABLE": "from_file", "PARTITION_ROWS": "7", "TARGET_SCHEMA": "shop"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BGE_PIPELINE_WITHOUT_ENV_FILE", "true")
    monkeypatch.setenv("BGE_PIPELINE_AS_STARTED", '{"target_table": "meant", "target_schema": "earlier"}')
    settings = load_settings()
    assert (settings.target_table, settings.partition_rows, settings.target_schema) == ("meant", 50_000, "shop")


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "")
    assert load_settings().embedding_dimensions == 384


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().target_table = "other"


NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=15)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_a_list_of_columns_is_read_as_it_is_written(names):
    assert split_columns(join_columns(names)) == tuple(names)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("id", ("id",)),
        ("tenant_id, doc_id", ("tenant_id", "doc_id")),
        ('"Doc, Id",chunk no', ("Doc, Id", "chunk no")),
        ('"a ""b""", c', ('a "b"', "c")),
        ('the "id"', ('the "id"',)),
    ],
)
def test_the_id_is_one_column_or_several(monkeypatch, tmp_path, value, names):
    monkeypatch.setenv("TARGET_ID_COLUMN", value)
    assert load_settings().id_columns == names
    monkeypatch.delenv("TARGET_ID_COLUMN")
    write_env({"TARGET_ID_COLUMN": join_columns(names)}, tmp_path / ".env")
    assert load_settings().id_columns == names


@pytest.mark.parametrize("value", ["a,", ",a", "a,,b", '"a', '"a"b', "a,a", "a," + "b" * 64, '""'])
def test_what_is_no_list_of_columns_is_named(monkeypatch, value):
    assert "TARGET_ID_COLUMN: expected" in complaint(monkeypatch, TARGET_ID_COLUMN=value)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is(name):
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("EMBEDDING_DIMENSIONS", "many", "EMBEDDING_DIMENSIONS: Input should be a valid integer"),
        ("EMBEDDING_DIMENSIONS", "0", "greater than or equal to 1"),
        ("EMBEDDING_DIMENSIONS", "4001", "at most 4,000 dimensions"),
        ("EMBEDDING_DEVICE", "gpu", "EMBEDDING_DEVICE: "),
        ("OLD_INDEX", "maybe", "'drop' or 'keep'"),
        ("OLD_EMBEDDING", "yes", "'keep' or 'drop'"),
        ("INDEX_METHOD", "btree", "'ivfflat' or 'hnsw'"),
        ("BACKFILL_BATCH_ROWS", "1000000", "BACKFILL_BATCH_ROWS: "),
        ("TARGET_TABLE", "x" * 64, "TARGET_TABLE: "),
        ("TARGET_TABLE", "鍵" * 22, "at most 63 bytes"),
        ("TARGET_TEXT_COLUMN", "id", "expected different columns"),
        ("RETURN_TOP_K", "500", "RETURN_TOP_K (500): expected at most RERANK_TOP_K"),
        ("LOCK_TIMEOUT_MS", "0", "LOCK_TIMEOUT_MS: "),
        ("ENABLE_RERANKER", "perhaps", "ENABLE_RERANKER: "),
        ("RERANK", "never", "'always' or 'auto'"),
    ],
)
def test_a_bad_value_names_the_variable_and_what_it_held(monkeypatch, name, value, expected):
    message = complaint(monkeypatch, **{name: value})
    assert expected in message
    assert value in message or name in message
    assert ".env" in message


def test_all_problems_are_named_at_once(monkeypatch):
    message = complaint(monkeypatch, OLD_INDEX="a", INDEX_METHOD="b", LOCK_TIMEOUT_MS="c")
    assert [name in message for name in ("OLD_INDEX", "INDEX_METHOD", "LOCK_TIMEOUT_MS")] == [True] * 3


@pytest.mark.parametrize("name", ["DATABASE_URL", "DAGSTER_DATABASE_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@host/db",
        "me:hunter2@host/db",
        "hunter2",
        "postgresql://me:hunter2@host:port/db",
        "postgresql://host:hunter2/db",
        "postgresql:/me:hunter2@host/db",
    ],
)
def test_a_bad_url_is_refused_without_its_password(monkeypatch, name, url):
    message = complaint(monkeypatch, **{name: url})
    assert message.startswith(f"{name}: expected postgresql://user:password@host:5432/database")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "name", ["EMBEDDING_API_URL", "QUERY_EXPANSION_URL", "REPORTS_URL", "DAGSTER_URL", "SLACK_API_URL"]
)
def test_a_web_url_is_refused_with_a_password_that_would_be_shown(monkeypatch, name):
    monkeypatch.setenv(name, "https://host:8443/base/")
    assert getattr(load_settings(), name.lower()) == "https://host:8443/base"
    for url in (
        "https://me:hunter2@host/v1",
        "https://hunter2@host/v1",
        "https://me:hunter2/3@host/v1",
        "https://me:1/hunter2@host/v1",
        "https://host/v1?key=hunter2",
        "https://host/v1#hunter2",
        "https://host:hunter2/v1",
        "ftp://hunter2",
        "hunter2",
    ):
        message = complaint(monkeypatch, **{name: url})
        assert message.startswith(f"{name}: expected "), url
        assert "hunter2" not in message, url


@given(st.text("abc123!$%^&*()", min_size=6).map(lambda s: f"SECRET{s}"))
def test_no_representation_of_settings_shows_a_secret(secret):
    settings = load_settings(
        database_url=f"postgresql://me:{secret.replace('%', '%25')}@host/db", embedding_api_key=secret
    )
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "SECRET" not in shown


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_a_postgres_url_is_taken(monkeypatch, scheme):
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://me@host/db")
    assert load_settings().database_url is not None


@pytest.mark.parametrize("name", ["Order Notes", 'quo"ted', "100%", "naïve", "x" * 63])
def test_a_name_is_taken_as_it_stands_in_the_catalog(monkeypatch, name):
    monkeypatch.setenv("TARGET_TABLE", name)
    assert load_settings().target_table == name


def test_a_name_in_env_that_is_nearly_a_setting_is_found(tmp_path):
    env_file = tmp_path / ".env"
    env_file.write_text("EMBEDING_MODEL=x\nDATABASE_URL=y\nEMBEDDINGS_DIM=384\nSECRET_KEY=z\nMODEL=w\n")
    assert misspelled_names(env_file) == {"EMBEDING_MODEL": "EMBEDDING_MODEL"}
    assert misspelled_names(tmp_path / "absent") == {}
