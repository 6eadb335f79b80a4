"""Page, dashboard and alert rules name the metrics that the code exports, with their labels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from bge_pipeline.database.connection import Database
from bge_pipeline.orchestration.dagster_metrics import _families
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.table_metrics import TableMetrics
from bge_pipeline.settings import load_settings
from bge_pipeline.telemetry.metrics import REGISTRY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "bge-pipeline.json").read_text(encoding="utf-8"))
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text(encoding="utf-8"))

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
ADDED_BY_PROMETHEUS = {"instance", "job", "le", "process"}


def exported() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name as in an expression (a histogram's without its suffix), kind, labels and meaning of every metric of ours."""
    for collector in REGISTRY._collector_to_names:
        if hasattr(collector, "_labelnames"):
            (family,) = collector.collect()
            yield _shown(family.name, family.type), family.type, tuple(collector._labelnames), family.documentation
    table = TableMetrics(Migration(Database("postgresql://nobody@127.0.0.1:1/none"), load_settings()))
    for family in (*table.describe(), *_families()):
        yield _shown(family.name, family.type), family.type, tuple(family._labelnames), family.documentation


def _shown(name: str, kind: str) -> str:
    return name + ("_total" if kind == "counter" else "")


SAMPLES = {
    name.removesuffix("_total") + suffix: set(labels)
    for name, kind, labels, _ in exported()
    for suffix in _SUFFIXES[kind]
} | {"process_resident_memory_bytes": set()}


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return of_panels + [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def _with_any(expression: str) -> str:
    """The expression of a panel whose variables choose everything."""
    return re.sub(r"\$\w+", ".*", expression)


def test_the_page_lists_every_metric_as_it_is() -> None:
    written = re.findall(r"^\| `(bge_pipeline_\w+)` \| (\w+) \| ([\w, ]*?) ?\| (.+) \|$", PAGE, re.MULTILINE)
    assert [(name, kind, labels, meaning) for name, kind, labels, meaning in written] == [
        (name, kind, ", ".join(labels), meaning) for name, kind, labels, meaning in exported()
    ]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_what_is_exported(expression: str) -> None:
    found = selectors(_with_any(expression))
    assert found
    for selector in found:
        assert selector.name in SAMPLES
        assert {matcher.name for matcher in selector.matchers.matchers} <= SAMPLES[selector.name] | ADDED_BY_PROMETHEUS


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert() -> None:
    """But for those that only explain others."""
    asked = {
        re.sub("_(bucket|count|sum)$", "", selector.name) for e in expressions() for selector in selectors(_with_any(e))
    }
    left = {name for name, *_ in exported()} - asked
    assert left == {
        "bge_pipeline_backfill_rows_left",
        "bge_pipeline_backfill_rows_per_second",
        "bge_pipeline_phase_seconds",
        "bge_pipeline_phases_under_way",
        "bge_pipeline_table_bytes",
        "bge_pipeline_table_look_seconds",
        "bge_pipeline_table_rows",
        "bge_pipeline_table_rows_written_in_page_total",
        "bge_pipeline_table_rows_written_total",
        "bge_pipeline_table_tokens_read_total",
        "bge_pipeline_texts_truncated_total",
    }


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        taken = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not taken & places
        assert max(x for x, _ in taken) < 24
        places |= taken


@pytest.mark.parametrize(
    "rule", [rule for group in ALERTS["groups"] for rule in group["rules"]], ids=lambda rule: rule["alert"]
)
def test_every_alert_says_what_is_wrong_and_uses_labels_that_it_has(rule: dict[str, object]) -> None:
    annotations = rule["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    used = set(re.findall(r"\$labels\.(\w+)", str(annotations)))
    assert all(used <= SAMPLES[selector.name] for selector in selectors(str(rule["expr"]))[:1])


def test_the_figures_that_an_alert_compares_are_of_one_series() -> None:
    """Of one exporter, and of every label that the metrics of a table have."""
    compared = re.findall(r"on \(([^)]*)\)", str(ALERTS))
    assert len(compared) == 3
    of_a_table = SAMPLES["bge_pipeline_table_pending_rows"]
    assert [set(labels.split(", ")) for labels in compared] == [{"instance", *of_a_table}] * 3
    assert of_a_table == {"database", "table", "column"}


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml"), ("check", "config", "prometheus.yaml")],
    ids=" ".join,
)
def test_promtool_takes_the_rules(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
