"""From a result's plain values to metadata that the Dagster UI shows well."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from bge_pipeline.quality.gate import GateResult
from bge_pipeline.report.pages import markdown_table
from bge_pipeline.report.sections import gate_rows
from bge_pipeline.settings import Settings
from bge_pipeline.settings.configuration import in_force

_DIGITS = 5


def as_dagster_metadata(values: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """Numbers stay numbers, so that the UI draws their history; names are listed, mappings become JSON; None is left out."""
    return {name: _metadata_value(value) for name, value in values.items() if value is not None}


def settings_metadata(settings: Settings) -> dict[str, Any]:
    """The settings in force, where they are not the defaults; secrets are masked."""
    return {"settings": in_force(settings)}


def gate_metadata(gate: GateResult | None) -> dict[str, dg.MetadataValue]:
    """The quality gate's decision as a table, and each measurement as a number, so that the UI draws its history.

    Where there was nothing to measure, there is nothing to tell.
    """
    if gate is None or not gate.checks:
        return {}
    verdict = "passed" if gate.passed else f"not passed, QUALITY_GATE={gate.mode}"
    values = {f"quality_{check.name}": check.value for check in gate.checks}
    return {
        "quality_gate": dg.MetadataValue.text(verdict),
        "quality_checks": dg.MetadataValue.md(markdown_table(gate_rows(gate))),
        **as_dagster_metadata(values),
    }


def _metadata_value(value: Any) -> dg.MetadataValue:
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(float(f"{value:.{_DIGITS}g}"))
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return dg.MetadataValue.text(", ".join(value) or "none")
    if isinstance(value, (list, tuple, dict)):
        return dg.MetadataValue.json(list(value) if isinstance(value, tuple) else value)
    return dg.MetadataValue.text(str(value))
