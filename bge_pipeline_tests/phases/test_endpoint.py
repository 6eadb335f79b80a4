"""A column filled by an endpoint: row by row what a local model does, and stops where going on would cost too much."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_pipeline.cli import examining
from bge_pipeline.database.connection import Database
from bge_pipeline.database.quarantine import list_quarantined
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.endpoint.limits import shared_limits
from bge_pipeline.embedding.loading import load_encoder_of
from bge_pipeline.errors import (
    BudgetSpent,
    ConfigurationError,
    ConsentRequired,
    EmbeddingSpaceMismatch,
    EncodingError,
    ModelUnavailable,
)
from bge_pipeline.phases.backfill import BackfillResult, backfill
from bge_pipeline.phases.compare_models import compare_models
from bge_pipeline.phases.compare_search import compare_search
from bge_pipeline.phases.doctor import examine
from bge_pipeline.phases.embed import embed_pending
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.last_rows import StillPending, embed_last_rows
from bge_pipeline.phases.migrate import migrate, open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.state import read_state, require_table
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import SwapResult, swap
from bge_pipeline.search import Retriever
from bge_pipeline.settings import Settings
from bge_pipeline_tests.endpoint_server import DROPPED, KEY, EndpointServer, error, serving
from bge_pipeline_tests.support import SEGMENTS, agreed, execute, pending_ids, scalar, wrong_vectors

pytestmark = pytest.mark.pgvector

MakeSettings = Callable[..., Settings]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with serving() as served:
        yield served
    shared_limits.cache_clear()


@pytest.fixture
def configured(server: EndpointServer, make_settings: MakeSettings) -> MakeSettings:
    """Settings that name the server, in small batches; keywords override."""

    def make(**overrides: object) -> Settings:
        values: dict[str, object] = {
            "embedding_provider": "openai",
            "embedding_model": "some-model",
            "embedding_api_url": server.url,
            "embedding_api_key": KEY,
            "embedding_batch_size": 20,
            "backfill_batch_rows": 50,
            "search_probes": 10,
        }
        return make_settings(**(values | overrides))

    return make


def fill(database: Database, settings: Settings) -> BackfillResult:
    with open_service(Migration(database, settings)) as service:
        expand(Migration(database, agreed(Migration(database, settings))), service.space)
        return backfill(Migration(database, settings), service.encoder)


def test_a_table_goes_all_the_way_and_is_searched_and_kept_current(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    settings = configured()
    with open_service(Migration(database, settings)) as service:
        result = migrate(Migration(database, agreed(Migration(database, settings))), service)

        assert (result.backfill.rows, result.backfill.device) == (300, server.url.split("/")[2])
        assert result.swap is not None
        assert result.swap.gate is not None
        assert wrong_vectors(database, server.encoder, "embedding") == []
        text = scalar(database, "SELECT text FROM segments WHERE id = 7")
        assert Retriever(database, settings, service).search(text, top_k=1).results[0].text == text
    execute(database, "UPDATE segments SET text = 'changed' WHERE id < 4")
    assert embed_pending(Migration(database, settings)).backfill.rows == 3  # type: ignore[union-attr]
    assert wrong_vectors(database, server.encoder, "embedding") == []
    assert read_status(Migration(database, settings)).model == "some-model"


def test_vectors_of_another_model_at_the_endpoint_are_refused(database: Database, configured: MakeSettings) -> None:
    fill(database, configured())
    execute(database, "UPDATE segments SET text = 'changed' WHERE id = 1")
    for other in ({"embedding_model": "another"}, {"embedding_passage_prompt": "passage: "}):
        with pytest.raises(EmbeddingSpaceMismatch):
            embed_pending(Migration(database, configured(**other)))


def test_the_row_at_fault_goes_to_quarantine_with_what_the_server_said_and_no_other_is_paid_for_twice(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    execute(database, "UPDATE segments SET text = 'poison ' || id WHERE id IN (33, 34, 210)")
    refusal = (400, {}, error(f"no poison for {KEY}"))
    server.rule = lambda request: refusal if any("poison" in text for text in request["input"]) else None

    result = fill(database, configured())

    assert (result.rows, result.quarantined, result.pending_after) == (297, 3, 0)
    assert wrong_vectors(database, server.encoder, "embedding_384") == []
    with database.autocommit() as connection:
        rows = list_quarantined(connection, SEGMENTS, 10)
    assert sorted(int(row.row_id) for row in rows) == [33, 34, 210]
    assert all("refuses the text: HTTP 400, no poison for [key]" in row.error for row in rows)
    taken = [text for request in server.requests if server.rule(request) is None for text in request["input"]]
    # A plain sentence is asked for each batch of rows with a refusal, which tells bad rows from a broken server.
    assert len(taken) == 297 + sum(text.startswith("The quick brown fox") for text in taken)


def test_a_server_that_takes_nothing_is_broken_and_no_row_is_blamed(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    server.rule = lambda _: (400, {}, error("model is not loaded"))
    with pytest.raises(EncodingError, match=r"fails on a plain sentence: .*model is not loaded"):
        fill(database, configured())
    assert scalar(database, "SELECT count(*) FROM segments_embedding_quarantine") == 0


@pytest.mark.parametrize(
    ("reply", "kind"),
    [((401, {}, error("who are you")), ConfigurationError), ((404, {}, error("no such model")), ConfigurationError)],
)
def test_a_mistake_ends_the_backfill_at_once_and_what_was_committed_is_kept(
    reply: Any, kind: type[Exception], database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    settings = configured(embedding_concurrency=1)
    server.rule = lambda _: reply if len(server.requests) > 9 else None
    with pytest.raises(kind):
        fill(database, settings)
    assert 10 <= len(server.requests) <= 11  # one may have been on its way
    assert 300 - len(pending_ids(database)) > 0

    server.rule = lambda _: None
    assert fill(database, settings).pending_after == 0
    assert wrong_vectors(database, server.encoder, "embedding_384") == []


def test_an_outage_is_lived_through_or_resumed_after(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    server.script = [(500, {}, b"oops"), DROPPED, (429, {"Retry-After": "0"}, error("slow down"))]
    server.rule = lambda _: DROPPED if len(server.requests) > 9 else None
    with pytest.raises(ModelUnavailable, match="in 2 attempts"):
        fill(database, configured(embedding_max_attempts=2, embedding_concurrency=1))

    server.rule = lambda _: None
    assert fill(database, configured()).pending_after == 0
    assert wrong_vectors(database, server.encoder, "embedding_384") == []


def test_texts_over_the_limit_are_counted(database: Database, server: EndpointServer, configured: MakeSettings) -> None:
    execute(database, "UPDATE segments SET text = repeat('word ', 3000) WHERE id IN (1, 2)")
    result = fill(database, configured(embedding_text_tokens=2_000))
    assert result.truncated == 2
    assert max(map(len, server.texts)) == 8_000


class TestABudget:
    def test_it_ends_the_backfill_and_the_next_run_goes_on(
        self, database: Database, server: EndpointServer, configured: MakeSettings
    ) -> None:
        settings = configured(embedding_max_tokens=4_000)
        runs = 0
        while (result := fill(database, settings)).spent:
            runs += 1
            assert result.spent == "EMBEDDING_MAX_TOKENS=4000"
            assert runs < 20
        assert runs > 1
        assert result.pending_after == 0
        assert len(server.texts) == 300
        assert wrong_vectors(database, server.encoder, "embedding_384") == []

    def test_no_more_is_sent_than_it_pays_for_and_all_that_was_sent_is_kept(
        self, database: Database, server: EndpointServer, configured: MakeSettings
    ) -> None:
        settings = configured(embedding_max_cost=0.002, embedding_price_per_million=1)
        with open_service(Migration(database, settings)) as service:
            expand(Migration(database, agreed(Migration(database, settings))), service.space)
            result = backfill(Migration(database, settings), service.encoder)
            assert isinstance(service.encoder, EndpointEncoder)
            spent = service.encoder.budget.spent

        assert result.spent == "EMBEDDING_MAX_COST=0.002"
        words = sum(len(text.split()) for text in server.texts)
        assert spent == words
        assert 1_000 < words <= 2_000
        assert len(server.texts) == result.rows == 300 - len(pending_ids(database))

    def test_migrate_and_embed_say_so_and_exchange_nothing(self, database: Database, configured: MakeSettings) -> None:
        settings = configured(embedding_max_tokens=1_000)
        with (
            open_service(Migration(database, settings)) as service,
            pytest.raises(BudgetSpent, match="EMBEDDING_MAX_TOKENS=1000") as told,
        ):
            migrate(Migration(database, agreed(Migration(database, settings))), service)
        assert told.value.exit_code == 7
        assert read_status(Migration(database, settings)).phase == "expanded"
        with pytest.raises(BudgetSpent):
            embed_pending(Migration(database, settings))
        with open_service(Migration(database, configured())) as service:
            migrate(Migration(database, agreed(Migration(database, settings))), service)
        assert read_status(Migration(database, settings)).phase == "swapped"

    def test_one_that_pays_for_no_row_sends_nothing(
        self, database: Database, server: EndpointServer, configured: MakeSettings
    ) -> None:
        result = fill(database, configured(embedding_max_tokens=1))
        assert (result.rows, result.spent, server.requests) == (0, "EMBEDDING_MAX_TOKENS=1", [])


def test_a_slow_endpoint_does_not_hold_writers_longer_than_they_may_wait(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    settings = configured(swap_max_writer_pause_ms=500, quality_gate="off")
    fill(database, settings)

    server.seconds = 5
    execute(
        database,
        "INSERT INTO segments (source_id, video_id, start_sec, end_sec, text) "
        "SELECT source_id, 'new', 0, 1, 'late' FROM segments LIMIT 1",
    )
    column = require_table(Migration(database, settings)).filled
    started = time.monotonic()
    with open_service(Migration(database, settings)) as service:
        with database.transaction() as connection, pytest.raises(StillPending, match="SWAP_MAX_WRITER_PAUSE_MS"):
            embed_last_rows(
                connection,
                SEGMENTS,
                column.name,
                None,  # type: ignore[arg-type] - nothing is written
                service.encoder,
                started + 0.5,
            )
        assert time.monotonic() - started < 3


def test_the_old_model_behind_the_endpoint_keeps_its_column_current_too(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    settings = configured(quality_gate="off")
    with open_service(Migration(database, settings)) as service:
        migrate(Migration(database, agreed(Migration(database, settings))), service)
    retire(Migration(database, settings))
    following = configured(embedding_model="the-next", quality_gate="off")
    with open_service(Migration(database, following)) as service:
        expand(Migration(database, agreed(Migration(database, following))), service.space)
        execute(database, "UPDATE segments SET text = 'new words' WHERE id = 5")
        result = backfill(Migration(database, following), service.encoder)

        assert (result.companion_rows, result.companion_is_kept) == (1, True)
        assert wrong_vectors(database, server.encoder, "embedding") == []
        assert {request["model"] for request in server.requests if "new words" in request["input"]} == {
            "some-model",
            "the-next",
        }
        swap(Migration(database, agreed(Migration(database, following))), service)
    assert KEY not in str(execute(database, "SELECT * FROM segments_embedding_journal"))


def test_an_address_that_serves_another_model_by_now_writes_nothing_into_either_column(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    settings = configured(quality_gate="off")
    with open_service(Migration(database, settings)) as service:
        migrate(Migration(database, agreed(Migration(database, settings))), service)
    retire(Migration(database, settings))
    server.rule = lambda request: (200, {}, server.proper(request) | {"model": "the-next"})
    execute(database, "UPDATE segments SET text = 'new words' WHERE id = 5")
    with pytest.raises(EmbeddingSpaceMismatch, match="made some of the-next"):
        embed_pending(Migration(database, settings))
    following = configured(embedding_model="the-next", quality_gate="off")
    with open_service(Migration(database, following)) as service:
        expand(Migration(database, agreed(Migration(database, following))), service.space)
        result = backfill(Migration(database, following), service.encoder)

    assert (result.rows, result.companion_rows, result.companion_pending) == (300, 0, 1)
    assert pending_ids(database, "embedding") == [5]


def go_all_the_way(database: Database, settings: Settings) -> None:
    """Migrate the table, without its gate."""
    quiet = settings.model_copy(update={"quality_gate": "off"})
    with open_service(Migration(database, quiet)) as service:
        migrate(Migration(database, agreed(Migration(database, quiet))), service)


def measured_alone(result: SwapResult, server: EndpointServer, question: str) -> bool:
    """Whether the new model alone was measured by the labelled question."""
    assert result.gate is not None
    (check,) = [check for check in result.gate.checks if check.name == "ndcg_retained"]
    asked = [request["model"] for request in server.requests if question in request["input"]]
    return (check.value, "the-next" in asked) == (None, True)


@pytest.mark.parametrize(
    ("reply", "keep"),
    [
        ((404, {}, error("no such model")), "auto"),
        ("another name", "auto"),
        ((404, {}, error("no such model")), "off"),
    ],
)
def test_an_old_model_that_the_endpoint_serves_no_more_stops_neither_gate_nor_comparison(
    reply: Any, keep: str, database: Database, server: EndpointServer, configured: MakeSettings, tmp_path: Path
) -> None:
    go_all_the_way(database, configured())
    retire(Migration(database, configured()))
    rows = execute(database, "SELECT id, text FROM segments ORDER BY id LIMIT 20")
    queries = tmp_path / "queries.jsonl"
    queries.write_text("\n".join(json.dumps({"query": row.text[:60], "relevant": [row.id]}) for row in rows))

    def of_old_model(request: dict[str, Any]) -> Any:
        if request["model"] != "some-model":
            return None
        return (200, {}, server.proper(request) | {"model": "the-next"}) if reply == "another name" else reply

    server.rule = of_old_model
    server.requests.clear()
    following = configured(embedding_model="the-next", eval_queries=queries, keep_old_current=keep)
    fill(database, following)
    with open_service(Migration(database, following)) as service:
        compared = compare_search(Migration(database, following), service, ["open a file"])
        result = swap(Migration(database, agreed(Migration(database, following))), service)

    assert result.exchanged
    assert measured_alone(result, server, rows[0].text[:60])
    assert "the old model is not at hand" in compared.source
    asked = [text for request in server.requests if request["model"] == "some-model" for text in request["input"]]
    assert set(asked) <= ({"The quick brown fox jumps over the lazy dog."} if keep == "auto" else set())


def test_an_old_model_that_fails_on_the_questions_alone_leaves_the_new_one_measured(
    database: Database, server: EndpointServer, configured: MakeSettings, tmp_path: Path
) -> None:
    go_all_the_way(database, configured())
    retire(Migration(database, configured()))
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"query": "poison", "relevant": [1]}')
    server.rule = lambda request: (
        (400, {}, error("no poison")) if (request["model"], request["input"]) == ("some-model", ["poison"]) else None
    )
    following = configured(embedding_model="the-next", eval_queries=queries, gate_override="one query")
    fill(database, following)
    with open_service(Migration(database, following)) as service:
        result = swap(Migration(database, agreed(Migration(database, following))), service)
    assert measured_alone(result, server, "poison")


def test_an_alias_is_good_for_the_recorded_model_too(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    server.rule = lambda request: (200, {}, server.proper(request) | {"model": "bge-small"})
    settings = configured(embedding_model="prod", embedding_served_model="bge-small")
    go_all_the_way(database, settings)
    with database.autocommit() as connection:
        space = read_state(connection, SEGMENTS).current_space
    assert space is not None
    encoder = load_encoder_of(space, settings)
    assert encoder is not None
    assert encoder.encode(encoder.tokenize(["a text"])).shape == (1, 384)
    assert {
        finding.grade for finding in examine(Migration(database, settings)).findings if finding.name == "model"
    } == {"ok"}

    another = load_encoder_of(space, configured(embedding_model="the-next", embedding_served_model="bge-small"))
    assert another is not None
    with pytest.raises(EmbeddingSpaceMismatch, match="made some of bge-small"):
        another.encode(another.tokenize(["a text"]))


class TestWithAModelOfThisMachineByNow:
    """The searched vectors are an endpoint's, whose address and key are still set."""

    @pytest.fixture
    def local(
        self, database: Database, server: EndpointServer, configured: MakeSettings, make_settings: MakeSettings
    ) -> Settings:
        go_all_the_way(database, configured())
        server.requests.clear()
        return make_settings(embedding_api_url=server.url, embedding_api_key=KEY)

    @pytest.fixture
    def _in_environment(self, local: Settings, server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "DATABASE_URL": local.database_url.get_secret_value(),  # type: ignore[union-attr]
            "BGE_PIPELINE_HOME": str(local.bge_pipeline_home),
            "EMBEDDING_MODEL": "hashing",
            "EMBEDDING_API_URL": server.url,
            "EMBEDDING_API_KEY": KEY,
        }.items():
            monkeypatch.setenv(name, value)

    @pytest.mark.usefixtures("_in_environment")
    def test_compare_asks_before_it_sends_the_texts_to_the_model_of_today(self, server: EndpointServer) -> None:
        with pytest.raises(
            ConsentRequired, match=r"queries made of them, are sent to 127.0.0.1 for some-model of today"
        ):
            examining.compare_command(["hashing"])
        assert server.requests == []
        examining.compare_command(["hashing"], texts=100, yes=True)
        assert len(server.texts) == 8 + 100 + 100

    def test_a_comparison_that_nobody_agreed_to_leaves_that_model_out_and_says_so(
        self, database: Database, server: EndpointServer, local: Settings
    ) -> None:
        found = compare_models(Migration(database, local), ["hashing"])
        assert [candidate.model for candidate in found.candidates] == ["hashing"]
        assert found.failed.keys() == {"some-model"}
        assert server.requests == []

    def test_doctor_sends_nothing_and_says_how_it_would(
        self, database: Database, server: EndpointServer, local: Settings
    ) -> None:
        (told,) = [finding for finding in examine(Migration(database, local)).findings if finding.name == "model"]
        assert (told.grade, told.next_step) == ("note", "bge-pipeline doctor --set EMBEDDING_PROVIDER=openai")
        assert server.requests == []
        agreed_to = local.model_copy(update={"embedding_provider": "openai"})
        (told,) = [finding for finding in examine(Migration(database, agreed_to)).findings if finding.name == "model"]
        assert told.grade == "ok"
        assert len(server.texts) == 256


def test_doctor_goes_on_where_the_endpoint_refuses_the_key(
    database: Database, server: EndpointServer, configured: MakeSettings
) -> None:
    go_all_the_way(database, configured())
    server.rule = lambda _: (401, {}, error("who are you"))
    findings = {finding.name: finding for finding in examine(Migration(database, configured())).findings}
    assert findings["model"].grade == "note"
    assert "EMBEDDING_API_KEY is missing or not accepted" in findings["model"].told
    assert {"vectors", "index", "upkeep"} <= findings.keys()
