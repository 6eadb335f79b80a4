"""Metadata is what a person reads in the UI, and numbers whose history it draws."""

import dagster as dg

from bge_pipeline.orchestration.metadata import as_dagster_metadata, gate_metadata
from bge_pipeline.quality.gate import GateCheck, GateResult

GATE = GateResult(
    passed=False,
    mode="warn",
    checks=(
        GateCheck("ann_recall", 0.912345, 0.95, False, "too few are found"),
        GateCheck("ndcg_retained", None, 0.92, True, "not measured"),
    ),
)


def test_numbers_have_as_many_digits_as_anybody_reads_at_any_size():
    metadata = as_dagster_metadata({"texts_per_second": 63627.9198, "index_seconds": 0.0278123, "rows": 123_456_789})

    assert {name: value.value for name, value in metadata.items()} == {
        "texts_per_second": 63_628.0,
        "index_seconds": 0.027812,
        "rows": 123_456_789,
    }


def test_names_are_listed_and_what_is_unknown_is_left_out():
    metadata = as_dagster_metadata({"dropped_indexes": ("a", "b"), "dependents": (), "previous_column": None})

    assert metadata == {"dropped_indexes": dg.MetadataValue.text("a, b"), "dependents": dg.MetadataValue.text("none")}


def test_the_quality_gate_is_a_verdict_a_table_and_a_number_for_each_measurement():
    metadata = gate_metadata(GATE)

    assert metadata["quality_gate"] == dg.MetadataValue.text("not passed, QUALITY_GATE=warn")
    assert "| ann recall | 0.912 | 0.950 | NO | too few are found |" in str(metadata["quality_checks"].value)
    assert metadata["quality_ann_recall"] == dg.MetadataValue.float(0.91234)
    assert "quality_ndcg_retained" not in metadata


def test_a_gate_that_had_nothing_to_measure_says_nothing():
    assert gate_metadata(None) == {}
    assert gate_metadata(GateResult(passed=True, mode="off", checks=())) == {}
