"""Filters, unusual names and types, and the kinds of index that a column may have."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import BigInteger, Column, MetaData, String, Table, exists, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bge_pipeline.database.connection import Database
from bge_pipeline.database.sql import quote
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.errors import ConfigurationError
from bge_pipeline.search import Retriever, create_text_index
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import as_it_stands, execute, scalar

pytestmark = pytest.mark.pgvector

QUERY = "remove an item from a list"
SMALL = HashingEncoder(32)


class Base(DeclarativeBase):
    pass


class Segment(Base):
    """As an application maps the table."""

    __tablename__ = "segments"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    speaker_label: Mapped[str] = mapped_column(String)


@pytest.fixture
def many_rows(database: Database, make_settings: Callable[..., Settings]) -> Retriever:
    """3,000 rows of 32 dimensions with an IVFFlat index that the planner must use; one in fifty is rare."""
    execute(
        database,
        """
        CREATE TABLE many (id bigint PRIMARY KEY, text text, kind text, embedding vector(32));
        INSERT INTO many
        SELECT n, 'passage ' || n, CASE WHEN n % 50 = 0 THEN 'rare' ELSE 'common' END,
               CAST((SELECT array_agg(random() - 0.5) FROM generate_series(1, 32) i WHERE i + n > 0) AS vector)
        FROM generate_series(1, 3000) n;
        CREATE INDEX ON many USING ivfflat (embedding vector_cosine_ops) WITH (lists = 20)
        """,
    )
    with database.autocommit() as connection:
        name = connection.engine.url.database
        for parameter in ("enable_seqscan", "enable_sort"):
            connection.execute(text(f"ALTER DATABASE {name} SET {parameter} = off"))
        connection.execute(text("ANALYZE many"))
    database.close()
    return Retriever(database, make_settings(target_table="many", search_probes=2), query_encoder=SMALL)


@pytest.mark.pgvector("0.8")
def test_a_filter_that_few_rows_pass_still_finds_as_many_as_wanted(many_rows: Retriever) -> None:
    rare = many_rows.table.c.kind == "rare"
    found = many_rows.search(QUERY, top_k=50, where=rare, columns=["kind"], explain=True)
    assert "Index Scan using many_embedding_idx" in found.explanation, "the case that iterative scans are for"
    assert len(found.results) == 50
    assert {result.columns["kind"] for result in found.results} == {"rare"}
    distances = [result.distance for result in found.results]
    assert distances == sorted(distances)


def test_without_iterative_scans_the_index_gives_what_its_probes_hold(
    many_rows: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_pipeline.search.column.pgvector_version", lambda _connection: "0.7.4")
    found = many_rows.search(QUERY, top_k=50, where=many_rows.table.c.kind == "rare", explain=True)
    assert "iterative_scan" not in found.explanation
    assert 0 < len(found.results) < 50


def test_filters_may_be_written_on_the_applications_own_table_or_mapped_class(
    retriever: Retriever, database: Database
) -> None:
    own = Table("segments", MetaData(), Column("speaker_label", String))
    wanted = scalar(database, "SELECT count(*) FROM segments WHERE speaker_label = 'SPEAKER_00'")
    for condition in (
        retriever.table.c.speaker_label == "SPEAKER_00",
        own.c.speaker_label == "SPEAKER_00",
        Segment.speaker_label == "SPEAKER_00",
        func.lower(Segment.speaker_label) == "speaker_00",
    ):
        assert len(retriever.search(QUERY, top_k=300, where=condition).results) == wanted


def test_filters_may_ask_other_tables_and_json(retriever: Retriever, database: Database) -> None:
    sources = Table("sources", MetaData(), Column("id", BigInteger), Column("video_id", String))
    first = scalar(database, "SELECT video_id FROM sources ORDER BY id LIMIT 1")
    table = retriever.table
    from_source = exists().where(sources.c.id == table.c.source_id, sources.c.video_id == first)
    for mode in ("dense", "lexical", "hybrid"):
        results = retriever.search(QUERY, mode=mode, where=from_source, columns=["video_id"]).results
        assert {result.columns["video_id"] for result in results} <= {first}
    by_kind = retriever.search(QUERY, where=table.c.metadata["kind"].astext == "module", columns=["metadata"]).results
    assert by_kind
    assert {result.columns["metadata"]["kind"] for result in by_kind} == {"module"}


def test_a_filter_on_a_column_that_is_not_there_is_named(retriever: Retriever) -> None:
    other = Table("segments", MetaData(), Column("nope", String))
    with pytest.raises(ConfigurationError, match="got 'nope'"):
        retriever.search(QUERY, where=other.c.nope == "x")


def test_uuid_ids_and_names_that_need_quotes(database: Database, make_settings: Callable[..., Settings]) -> None:
    execute(
        database,
        """
        CREATE SCHEMA "My Notes";
        CREATE TABLE "My Notes"."Order 100% Notes" (
          "Key" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "The:Text" varchar(500), "Em""bedding" vector(32), "select" int)
        """,
    )
    texts = ["red apples and pears", "green pears", "a blue whale"]
    for number, vector in enumerate(SMALL.encode(SMALL.tokenize(texts))):
        execute(
            database,
            'INSERT INTO "My Notes"."Order 100% Notes" ("The\\:Text", "Em""bedding", "select") '
            "VALUES (:text, CAST(:vector AS vector), :number)",
            text=texts[number],
            vector=str(vector.tolist()),
            number=number,
        )
    settings = make_settings(
        target_schema="My Notes",
        target_table="Order 100% Notes",
        target_id_column="Key",
        target_text_column="The:Text",
        target_embedding_column='Em"bedding',
    )
    retriever = Retriever(database, settings, query_encoder=SMALL)
    for index in (False, True):
        if index:
            create_text_index(database, settings)
            assert retriever.check().has_text_index
        for mode in ("dense", "lexical", "hybrid"):
            first = retriever.search(
                "apples", mode=mode, columns=["select"], where=retriever.table.c.select < 2, explain=True
            ).results[0]
            assert isinstance(first.id, uuid.UUID)
            assert (first.text, first.columns) == (texts[0], {"select": 0})


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ("hnsw (embedding vector_cosine_ops)", "(hnsw, vector, cosine); hnsw.ef_search=100"),
        pytest.param(
            "hnsw ((embedding::halfvec(32)) halfvec_cosine_ops)",
            "(hnsw, halfvec, cosine)",
            marks=pytest.mark.pgvector("0.7"),
        ),
        pytest.param(
            "ivfflat ((embedding::halfvec(32)) halfvec_l2_ops) WITH (lists = 4)",
            "(ivfflat, halfvec, l2, lists=4)",
            marks=pytest.mark.pgvector("0.7"),
        ),
        ("hnsw (embedding vector_ip_ops)", "(hnsw, vector, ip)"),
        pytest.param("hnsw (embedding vector_l1_ops)", "(hnsw, vector, l1)", marks=pytest.mark.pgvector("0.7")),
    ],
)
def test_the_index_that_is_there_is_the_one_that_answers(
    database: Database, many_rows: Retriever, definition: str, says: str
) -> None:
    execute(database, "DROP INDEX many_embedding_idx")
    execute(database, "DELETE FROM many WHERE id > 400")
    execute(database, f"CREATE INDEX chosen ON many USING {definition}".replace("::", "\\:\\:"))
    execute(database, "ANALYZE many")
    response = many_rows.search(QUERY, top_k=10, explain=True)
    assert says in response.explanation
    assert "Index Scan using chosen" in response.explanation
    scores = [result.score for result in response.results]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.pgvector("0.7")
def test_a_halfvec_column_is_searched_as_it_is(database: Database, make_settings: Callable[..., Settings]) -> None:
    execute(
        database,
        "CREATE TABLE halves AS SELECT id, text, CAST(CAST(NULL AS text) AS halfvec(32)) AS embedding FROM segments; "
        "ALTER TABLE halves ADD PRIMARY KEY (id)",
    )
    passages = [row[0] for row in execute(database, "SELECT text FROM halves ORDER BY id")]
    with database.transaction() as connection:
        connection.exec_driver_sql(
            "UPDATE halves SET embedding = %s::halfvec WHERE id = %s",
            [(str(v.tolist()), n) for n, v in enumerate(SMALL.encode(SMALL.tokenize(passages)), start=1)],
        )
    retriever = Retriever(database, make_settings(target_table="halves"), query_encoder=SMALL)
    assert retriever.search(passages[41], top_k=1).results[0].id == 42


@pytest.mark.parametrize(
    "definition",
    [
        "(other vector_cosine_ops) WHERE embedding IS NOT NULL",
        "((COALESCE(other, embedding)::vector(32)) vector_cosine_ops)",
    ],
)
def test_an_index_on_another_column_that_names_this_one_does_not_answer(
    database: Database, many_rows: Retriever, definition: str
) -> None:
    execute(database, "DROP INDEX many_embedding_idx")
    execute(database, "ALTER TABLE many ADD other vector(32)")
    execute(database, "DELETE FROM many WHERE id > 100")
    execute(database, f"CREATE INDEX decoy ON many USING hnsw {definition}".replace("::", "\\:\\:"))
    assert many_rows.check().index is None
    assert len(many_rows.search(QUERY, top_k=10).results) == 10


@pytest.mark.pgvector("0.7")
@pytest.mark.parametrize(
    "key",
    [
        "{column}",
        "({column}::halfvec(32))",
        "({column}::vector(32))",
        "(subvector({column}, 1, 8)::vector(8))",
        "(subvector({column}, 1, 8)::halfvec(8))",
        "(l2_normalize({column})::vector(32))",
    ],
)
@pytest.mark.parametrize("column", ["embedding", 'Em"bed (ding)'])
def test_an_index_on_the_column_or_on_what_is_made_of_it_alone_answers(
    database: Database, make_settings: Callable[..., Settings], column: str, key: str
) -> None:
    operators = "halfvec_cosine_ops" if "halfvec" in key else "vector_cosine_ops"
    as_it_stands(
        database,
        f"CREATE TABLE few (id bigint PRIMARY KEY, text text, {quote(column)} vector(32)); "
        f"CREATE INDEX made ON few USING hnsw ({key.format(column=quote(column))} {operators})",
    )
    settings = make_settings(target_table="few", target_embedding_column=column)
    assert Retriever(database, settings, query_encoder=SMALL).check().index.name == "made"


@pytest.mark.pgvector("0.8")
def test_a_scan_of_hnsw_that_ends_before_the_table_does_says_so(database: Database, many_rows: Retriever) -> None:
    execute(database, "DROP INDEX many_embedding_idx")
    execute(database, "CREATE INDEX graph ON many USING hnsw (embedding vector_cosine_ops)")
    none = many_rows.table.c.id < 0
    assert many_rows.search(QUERY, top_k=5, where=none).warnings == (), (
        "it may look at 20,000 rows, and there are 3,000"
    )
    execute(database, f"ALTER DATABASE {database.url.database} SET hnsw.max_scan_tuples = 200")
    database.close()
    others = Retriever(database, many_rows._settings, query_encoder=SMALL)
    found = others.search(QUERY, top_k=5, where=none)
    assert found.results == ()
    (warning,) = found.warnings
    assert "found 0 of 5 rows" in warning
    assert "a scan of graph ends after hnsw.max_scan_tuples = 200 of about 3,000 rows" in warning
    assert warning in found.explanation
    assert others.search(QUERY, top_k=5).warnings == ()
    assert others.search(QUERY, top_k=5, where=none, mode="lexical").warnings == ()


def test_without_iterative_scans_it_is_ef_search_that_ends_a_scan(
    database: Database, many_rows: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database, "DROP INDEX many_embedding_idx")
    execute(database, "CREATE INDEX graph ON many USING hnsw (embedding vector_cosine_ops)")
    monkeypatch.setattr("bge_pipeline.search.column.pgvector_version", lambda _connection: "0.7.4")
    (warning,) = many_rows.search(QUERY, top_k=5, where=many_rows.table.c.id < 0).warnings
    assert "hnsw.ef_search = 100 of about 3,000 rows; raise SEARCH_EF_SEARCH, up to 1,000" in warning
