"""The report's pages say what was measured, leave out what was not, and need no file beside them."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bge_pipeline.quality.gate import GateCheck, GateResult
from bge_pipeline.quality.search_runs import SearchRun
from bge_pipeline.quality.side_by_side import Comparison, Hit, SideBySide
from bge_pipeline.quality.speed import EncodeRun
from bge_pipeline.report.benchmark import (
    BenchmarkReport,
    PhaseTime,
    Storage,
)
from bge_pipeline.report.pages import as_html, as_markdown, write_report
from bge_pipeline.report.plots import report_plots
from bge_pipeline.report.wall_clock import wall_seconds

GATE = GateResult(
    passed=False,
    mode="warn",
    checks=(
        GateCheck("ann_recall", 0.9, 0.95, False, "too | few"),
        GateCheck("ndcg_retained", None, 0.92, True, "not measured"),
    ),
)


@pytest.fixture
def report() -> BenchmarkReport:
    return BenchmarkReport(
        created_at="2026-11-22T21:00:51+00:00",
        table='"public"."segments"',
        phase="swapped",
        rows=2_000,
        model="a <model>",
        dimensions=384,
        device="cpu",
        precision="bf16",
        hardware="2 cores",
        versions={"PostgreSQL": "18"},
        encode=(EncodeRun(32, 512, 28_000, 2.0, None), EncodeRun(256, 512, 28_000, 1.0, None)),
        rerank=None,
        search=(
            SearchRun("old", "dense", False, 50, 12.34, 20.0, encodes=True, ndcg=0.4, index="old_index (ivfflat)"),
            SearchRun("new", "dense", False, 50, 5.67, 9.0, encodes=True, ndcg=0.5, index="new_index (ivfflat)"),
        ),
        storage=Storage(6_152, 1_544, 34_000_000, 24_000_000, 3_000_000),
        phases=(PhaseTime("expand", "2026-11-22 20:00:00.1+00", 0.1, "column embedding_384"),),
        gate=GATE,
        index_seconds=0.2,
        lock_milliseconds=8.0,
        backfill_seconds=6.5,
        backfill_texts_per_second=300.0,
        write_rows_per_second=9_000.0,
        notes=("reranking was not measured",),
    )


def pictures(page: str) -> list[str]:
    return re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)


def test_the_summary_sets_each_figure_beside_what_was_before(report: BenchmarkReport):
    lines = as_markdown(report).splitlines()

    assert lines[0] == "# Benchmark of public.segments"
    summary = lines.index("| encoding | search, median | nDCG@20 | one vector | table locked | quality gate |")
    assert (
        lines[summary + 2]
        == "| **512 texts/s** | **5.7 ms** | **0.500** | **1,544 bytes** | **8 ms** | **not passed** |"
    )
    assert "| in batches of 256 | with its query's vector | before 0.400 | before 6,152 bytes |" in lines[summary + 3]


def test_pictures_are_inside_the_page_and_drawn_without_fonts(report: BenchmarkReport):
    found = pictures(as_markdown(report))

    assert len(found) == 4
    assert found == pictures(as_html(report))
    for picture in found:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(base64.b64decode(picture)).iter()}
        assert "path" in tags
        assert "text" not in tags


def test_what_was_not_measured_takes_no_room(report: BenchmarkReport):
    bare = replace(report, encode=(), search=(), gate=None, lock_milliseconds=None)

    page = as_markdown(bare)

    assert len(pictures(page)) == 1
    assert "| one vector |\n| --- |\n| **1,544 bytes** |" in page
    assert "## Quality gate\n\nnot measured" in page
    assert "nothing to compare yet" in as_markdown(replace(bare, phase="legacy"))
    assert "recall@20" not in as_markdown(report), "no search has a recall"
    assert "device memory" not in as_markdown(report), "the device does not tell"


def test_a_failed_check_stands_out_and_its_text_keeps_to_its_cell(report: BenchmarkReport):
    assert "| ann recall | 0.900 | 0.950 | NO | too &#124; few |" in as_markdown(report)
    assert "<td class=no>NO</td><td>too | few</td>" in as_html(report)


def test_hundreds_of_id_ranges_become_one_line(report: BenchmarkReport):
    backfills = tuple(PhaseTime("backfill", f"2026-11-22 20:{n:02d}:00+00", 1.5, f"ids {n}") for n in range(50))

    page = as_markdown(replace(report, phases=(*report.phases, *backfills)))

    assert "| backfill | 2026-11-22 20:49:00 | 75.0 | 50 runs, on the wall |" in page
    assert "| expand | 2026-11-22 20:00:00 | 0.1 | column embedding_384 |" in page
    assert "ids 7" not in page


def test_html_escapes_and_refers_to_nothing_outside(report: BenchmarkReport, tmp_path):
    page = write_report(report, tmp_path / "reports").html.read_text()

    assert "a &lt;model&gt;" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<td class=number>512</td>" in page


def test_html_in_a_name_is_not_alive_in_markdown(report: BenchmarkReport):
    pages = as_markdown(replace(report, table='"public"."<script>alert(1)</script>"', model="a <model>"))
    assert "<script>" not in pages
    assert "&lt;script&gt;" in pages
    assert "a &lt;model&gt;" in pages


def test_a_plot_colours_by_the_column_and_not_by_a_name(report: BenchmarkReport):
    hybrid = replace(report.search[1], mode="hybrid", reranked=True)
    plots = report_plots(replace(report, encode=(), search=(report.search[0], hybrid)))

    drawn = plots["Search, milliseconds: median (95th percentile)"].decode()
    assert (drawn.count("#8f98a6"), drawn.count("#2f63b3")) == (1, 1)
    assert hybrid.name == "new hybrid, reranked"


def test_the_json_holds_what_the_pages_say(report: BenchmarkReport, tmp_path):
    values = json.loads(write_report(report, tmp_path).json.read_text())

    assert [run["name"] for run in values["search"]] == ["old dense", "new dense"]
    assert values["gate"] == report.gate.as_metadata()
    assert values["gate_summary"].startswith("quality gate (warn)")


def test_two_reports_of_one_second_and_those_of_two_tables_are_files_of_their_own(report: BenchmarkReport, tmp_path):
    other = replace(report, table='"public"."segments of ""ours"""')
    written = [write_report(one, tmp_path) for one in (report, report, other)]

    assert [one.html.name for one in written] == [
        "benchmark-20261122T210051-public-segments.html",
        "benchmark-20261122T210051-public-segments-2.html",
        "benchmark-20261122T210051-public-segments-of-ours.html",
    ]
    assert {path for one in written for path in (one.html, one.markdown, one.json)} == set(tmp_path.iterdir())
    assert [json.loads(one.json.read_text())["table"] for one in written] == [report.table, report.table, other.table]


def test_times_of_the_journal_are_those_of_one_zone(report: BenchmarkReport):
    abroad = PhaseTime("swap", "2026-11-22 16:58:00.25-05", 1.0, "")

    assert "| swap | 2026-11-22 21:58:00 | 1.0 |" in as_markdown(replace(report, phases=(abroad,)))


def test_what_is_no_figure_is_left_out_of_the_storage(report: BenchmarkReport):
    page = as_markdown(replace(report, phase="legacy", storage=Storage(6_152, None, None, 24_000_000, None)))

    assert "| one vector | 6,152 bytes | — |" in page
    assert "Now with the vectors of both columns." not in page
    assert "Now with the vectors of both columns." in as_markdown(report)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"index": None}, "the old column has no index now"),
        ({"encodes": False}, "the query's vector was made within the time of one and before that of the other"),
    ],
)
def test_unlike_searches_are_not_compared(report: BenchmarkReport, changed: dict[str, object], reason: str):
    title = "Search, milliseconds: median (95th percentile)"
    old = replace(report.search[0], **changed)
    unlike = replace(report, search=(old, report.search[1]))

    assert f"The milliseconds of old and new are no comparison: {reason}." in as_markdown(unlike)
    assert "no comparison" not in as_markdown(report)
    assert report_plots(report)[title].decode().count("#8f98a6") == 1
    assert report_plots(unlike)[title].decode().count("#8f98a6") == 0


def test_an_act_without_a_time_of_its_own_is_not_said_to_take_none(report: BenchmarkReport):
    swap = PhaseTime("swap", "2026-11-22 21:00:00+00", None, "index i was there, built by an earlier run")

    assert "| swap | 2026-11-22 21:00:00 | — | index i was there" in as_markdown(
        replace(report, phases=(*report.phases, swap))
    )


def test_runs_that_overlap_count_once_on_the_wall(report: BenchmarkReport):
    ends = ("20:01:40", "20:02:10", "20:05:00")
    backfills = [PhaseTime("backfill", f"2026-11-22 {end}+00", 100.0, "") for end in ends]

    assert wall_seconds((phase.at, 100.0) for phase in backfills) == pytest.approx(230.0)
    assert wall_seconds([("2026-11-22 20:00:00.5+05:30", 1.0), ("2026-11-22 14:30:00+00", 0.5)]) == pytest.approx(1.0)
    page = as_markdown(replace(report, phases=tuple(backfills), backfill_seconds=230.0))
    assert "The backfill's 3 runs took 230.0 s on the wall" in page


def test_the_results_stand_side_by_side_with_where_they_went(report: BenchmarkReport):
    old = (Hit("1", "one  <b>", 2), Hit("2", "two", None))
    new = (Hit("3", "three", None), Hit("1", "one  <b>", 1))
    pair = SideBySide("which | one?", None, old, new)
    compared = replace(report, side_by_side=Comparison("t", "old", "new", "as asked", (pair,)))

    page = as_markdown(compared)

    assert r"| 1 | \[1\] one &lt;b&gt; | 2 | \[3\] three | new |" in page
    assert r"| 2 | \[2\] two | gone | \[1\] one &lt;b&gt; | 1 |" in page
    assert "1 of 2 stayed (1 moved), 1 came, 1 went" in page
    assert "<td class=no>gone</td>" in as_html(compared)
    assert compared.as_json()["side_by_side"]["pairs"][0]["summary"].startswith("1 of 2")
