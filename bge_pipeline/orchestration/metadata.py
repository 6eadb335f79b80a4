"""From a result's plain values to metadata that the Dagster UI shows well."""

from collections.abc import Mapping
from typing import Any

import dagster as dg


def as_dagster_metadata(values: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """Numbers stay numbers, so that the UI draws their history; sequences and mappings become JSON; None is left out."""
    return {name: _metadata_value(value) for name, value in values.items() if value is not None}


def _metadata_value(value: Any) -> dg.MetadataValue:
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(round(value, 4))
    if isinstance(value, (list, tuple, dict)):
        return dg.MetadataValue.json(list(value) if isinstance(value, tuple) else value)
    return dg.MetadataValue.text(str(value))
