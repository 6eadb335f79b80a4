"""The quality gate passes good measurements, fails bad ones, and says why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bge_pipeline.quality.bounds import GateBounds
from bge_pipeline.quality.gate import GateMode, QualityMeasurements, decide
from bge_pipeline.quality.known_items import KnownItemSearch
from bge_pipeline.quality.label_free import NeighbourAgreement, StoredVectorAgreement
from bge_pipeline.quality.poolings import PoolingComparison
from bge_pipeline.quality.server_search import ServerSearch

GOOD = QualityMeasurements(
    ndcg_old=0.5,
    ndcg_new=0.6,
    ann_recall=0.98,
    neighbours=NeighbourAgreement(rows=2_000, k=20, overlap=0.2, rank_biased_overlap=0.2, chance_overlap=0.01),
    known_items=KnownItemSearch(queries=200, rows=2_000, k=20, success_at_1=0.9, success_at_k=0.97, mrr=0.93),
    stored_vectors=StoredVectorAgreement(
        rows=64, mean_cosine=1.0, min_cosine=0.999, matching_share=1.0, threshold=0.95, unit_length_share=1.0
    ),
    read_whole=0.99,
    poolings=PoolingComparison(
        configured="mean", rival="max", mrr=0.9, rival_mrr=0.8, advantage=0.1, standard_error=0.02, texts=200
    ),
)
BOUNDS = GateBounds()


def test_good_measurements_pass() -> None:
    result = decide(GOOD, BOUNDS)

    assert result.passed
    assert not result.blocks
    assert result.failures == ()
    assert result.summary() == "quality gate (enforce): 8 of 8 checks passed"


@pytest.mark.parametrize(
    ("measured", "failing"),
    [
        (replace(GOOD, ndcg_new=0.45), "ndcg_retained"),
        (replace(GOOD, ann_recall=0.90), "ann_recall"),
        (replace(GOOD, neighbours=replace(GOOD.neighbours, overlap=0.012)), "neighbour_agreement"),
        (replace(GOOD, known_items=replace(GOOD.known_items, success_at_k=0.3)), "known_item_success"),
        (replace(GOOD, stored_vectors=replace(GOOD.stored_vectors, matching_share=0.5)), "stored_vectors_matching"),
        (replace(GOOD, stored_vectors=replace(GOOD.stored_vectors, unit_length_share=0.0)), "unit_length"),
        (replace(GOOD, read_whole=0.1), "read_whole"),
        (replace(GOOD, poolings=replace(GOOD.poolings, advantage=-0.1)), "pooling_advantage"),
    ],
)
def test_each_bad_measurement_fails_its_own_check_and_stops_the_swap(
    measured: QualityMeasurements, failing: str
) -> None:
    result = decide(measured, BOUNDS)

    assert [check.name for check in result.failures] == [failing]
    assert result.blocks
    assert failing in result.summary()
    assert "expected at least" in result.failures[0].explanation


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("ALTER ROLE app SET hnsw.ef_search = 100", "ALTER ROLE app SET"),
        ("", "raise SEARCH_PROBES or SEARCH_EF_SEARCH"),
    ],
)
def test_plain_sql_that_finds_too_little_is_told_a_statement_where_there_is_one(statement: str, told: str) -> None:
    plain = ServerSearch(recall=0.5, setting="hnsw.ef_search", value=40, role="app", statement=statement)
    (failure,) = decide(replace(GOOD, server_search=plain), BOUNDS).failures

    assert failure.name == "server_recall"
    assert told in failure.explanation
    assert ("--set-search-effort" in failure.explanation) is bool(statement)


def test_a_measurement_on_the_bound_passes() -> None:
    assert decide(replace(GOOD, ann_recall=BOUNDS.ann_recall), BOUNDS).passed


def test_reranked_search_must_retain_more() -> None:
    between = replace(GOOD, ndcg_old=1.0, ndcg_new=0.93)

    assert decide(between, GateBounds.for_search(reranked=False)).passed
    assert not decide(between, GateBounds.for_search(reranked=True)).passed


def test_what_was_not_measured_does_not_fail_and_says_so() -> None:
    result = decide(QualityMeasurements(), BOUNDS)

    assert result.passed
    assert {check.explanation for check in result.checks} == {"not measured"}
    assert {check.value for check in result.checks} == {None}


def test_an_old_search_that_found_nothing_cannot_be_made_worse() -> None:
    assert decide(replace(GOOD, ndcg_old=0.0, ndcg_new=0.0), BOUNDS).passed


@pytest.mark.parametrize(("mode", "blocks"), [("enforce", True), ("warn", False)])
def test_only_enforce_stops_the_swap_on_failure(mode: GateMode, blocks: bool) -> None:
    result = decide(replace(GOOD, ann_recall=0.1), BOUNDS, mode)

    assert not result.passed
    assert result.blocks is blocks
    assert result.mode == mode


def test_a_gate_that_is_off_checks_nothing() -> None:
    result = decide(replace(GOOD, ann_recall=0.1), BOUNDS, "off")

    assert result.passed
    assert result.checks == ()
    assert "off" in result.summary()


def test_the_decision_is_plain_json() -> None:
    metadata = decide(replace(GOOD, ann_recall=0.1), BOUNDS, "warn").as_metadata()

    assert json.loads(json.dumps(metadata)) == metadata
    assert metadata["mode"] == "warn"
    assert metadata["checks"][1]["name"] == "ann_recall"


def test_a_refusal_by_comparison_says_which_side_is_the_likelier_culprit() -> None:
    strangers = replace(GOOD, neighbours=replace(GOOD.neighbours, overlap=0.012))
    old_ones = decide(strangers, BOUNDS)
    new_ones = decide(replace(strangers, known_items=replace(GOOD.known_items, success_at_k=0.3)), BOUNDS)

    assert "the old vectors, or a model that is set up wrongly" in old_ones.failures[0].explanation
    assert "the new vectors fail a check of their own" in new_ones.failures[0].explanation


def test_an_interval_that_reaches_the_bound_passes() -> None:
    few = replace(GOOD.neighbours, overlap=0.03, chance_overlap=0.01, standard_error=0.008)

    assert few.above_chance < BOUNDS.neighbour_agreement < few.highest_above_chance
    assert decide(replace(GOOD, neighbours=few), BOUNDS).passed


def test_a_wrong_pooling_is_named_as_the_culprit_of_a_worse_search() -> None:
    worse = replace(GOOD, ndcg_new=0.3, poolings=replace(GOOD.poolings, advantage=-0.1))

    explained = {check.name: check.explanation for check in decide(worse, BOUNDS).failures}

    assert "set up with another pooling than it was trained for" in explained["ndcg_retained"]
    assert (
        "mean pooling finds 200 texts by 8 words of each with MRR 0.900, max pooling" in explained["pooling_advantage"]
    )


def test_a_rival_that_is_better_by_the_luck_of_few_texts_refuses_nothing() -> None:
    few = replace(GOOD.poolings, advantage=-0.06, standard_error=0.04, texts=20)

    assert decide(replace(GOOD, poolings=few), BOUNDS).passed


def test_measurements_come_back_from_the_journal_as_they_were() -> None:
    kept = json.loads(json.dumps(GOOD.as_dict()))

    assert decide(QualityMeasurements.from_dict(kept), BOUNDS) == decide(GOOD, BOUNDS)
