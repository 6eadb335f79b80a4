"""A benchmark report as pages: Markdown for the Dagster UI, self-contained HTML, JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bge_pipeline.evaluation.plots import report_plots
from bge_pipeline.evaluation.report import BASELINE_TEXTS_PER_SECOND, BenchmarkReport


@dataclass(frozen=True)
class Section:
    """A heading, a table and a sentence under it; the first row of the table is its head."""

    title: str
    rows: list[Sequence[str]]
    text: str = ""


@dataclass(frozen=True)
class WrittenReport:
    """Where a report was written."""

    html: Path
    markdown: Path
    json: Path


def write_report(report: BenchmarkReport, folder: Path) -> WrittenReport:
    """Write the three forms of a report into a folder, named by its time."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"benchmark-{report.created_at.replace(':', '').replace('-', '')[:15]}"
    written = WrittenReport(*(stem.with_suffix(suffix) for suffix in (".html", ".md", ".json")))
    written.html.write_text(as_html(report), encoding="utf-8")
    written.markdown.write_text(as_markdown(report), encoding="utf-8")
    written.json.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False), encoding="utf-8")
    return written


def as_markdown(report: BenchmarkReport) -> str:
    """The report as Markdown, plots inside as data URIs."""
    parts = [f"# {_title(report)}", _subtitle(report)]
    for title, png in report_plots(report).items():
        parts += [f"**{title}**", f"![{title}]({_data_uri(png)})"]
    for section in _sections(report):
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        if section.rows:
            head, *body = section.rows
            lines = [head, ["---"] * len(head), *body]
            parts.append("\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines))
    parts += [f"- {note}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def as_html(report: BenchmarkReport) -> str:
    """The report as one HTML file that needs no other."""
    plots = "".join(
        f'<figure><figcaption>{escape(title)}</figcaption><img alt="{escape(title)}" src="{_data_uri(png)}"></figure>'
        for title, png in report_plots(report).items()
    )
    sections = "".join(_html_section(section) for section in _sections(report))
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return _PAGE.format(
        title=escape(_title(report)), subtitle=escape(_subtitle(report)), plots=plots, sections=sections, notes=notes
    )


def _title(report: BenchmarkReport) -> str:
    return f"{report.table}: {report.model}"


def _subtitle(report: BenchmarkReport) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"{report.rows:,} rows, phase {report.phase}; {report.device}, {report.precision}; {report.hardware}; {versions}; "
        f"{report.created_at}"
    )


def _sections(report: BenchmarkReport) -> list[Section]:
    return [
        _claims(report),
        _encode(report),
        _search(report),
        _quality(report),
        _storage(report),
        _phases(report),
    ]


def _claims(report: BenchmarkReport) -> Section:
    rows = [["figure", "named by the mission", "measured here"]]
    rows += [[claim.what, claim.claimed, claim.measured] for claim in report.claims]
    return Section("What was promised", list(rows))


def _encode(report: BenchmarkReport) -> Section:
    rows = [["batch size", "texts/s", "tokens/s", f"times {BASELINE_TEXTS_PER_SECOND:.0f} texts/s", "device memory"]]
    rows += [
        [
            str(run.batch_size),
            f"{run.texts_per_second:,.0f}",
            f"{run.tokens_per_second:,.0f}",
            f"{run.texts_per_second / BASELINE_TEXTS_PER_SECOND:,.1f}",
            _megabytes(run.device_memory_bytes),
        ]
        for run in report.encode
    ]
    text = f"{report.encode[0].texts:,} texts of the table."
    if report.rerank is not None:
        text += (
            f" Reranking with {report.rerank.model}: {report.rerank.queries} queries of {report.rerank.documents} documents, "
            f"{report.rerank.milliseconds_per_query:,.0f} ms a query."
        )
    return Section("Encoding", list(rows), text)


def _search(report: BenchmarkReport) -> Section:
    rows = [["search", "queries", "p50 ms", "p95 ms", "encoding included", "recall@20", "nDCG@20"]]
    rows += [
        [
            run.name,
            str(run.queries),
            f"{run.p50_milliseconds:,.1f}",
            f"{run.p95_milliseconds:,.1f}",
            "yes" if run.encodes else "no",
            _figure(run.recall),
            _figure(run.ndcg),
        ]
        for run in report.search
    ]
    return Section("Search", list(rows), "Recall is against exact search on the same column.")


def _quality(report: BenchmarkReport) -> Section:
    if report.gate is None:
        return Section("Quality gate", [], report.gate_summary)
    rows = [["check", "measured", "bound", "passed", ""]]
    rows += [
        [
            check["name"],
            _figure(check["value"]),
            _figure(check["bound"]),
            "not measured" if check["value"] is None else "yes" if check["passed"] else "NO",
            check["explanation"],
        ]
        for check in report.gate["checks"]
    ]
    return Section("Quality gate", list(rows), report.gate_summary.splitlines()[0])


def _storage(report: BenchmarkReport) -> Section:
    storage = report.storage
    rows = [
        ["", "before", "now"],
        ["one vector", _bytes(storage.old_vector_bytes), _bytes(storage.new_vector_bytes)],
        ["table with indexes", _megabytes(storage.table_bytes_before), _megabytes(storage.table_bytes_now)],
        ["new vector index", "", _megabytes(storage.index_bytes)],
    ]
    text = "" if report.phase == "retired" else "Until the old column is retired the table holds both."
    return Section("Storage", list(rows), text)


def _phases(report: BenchmarkReport) -> Section:
    rows = [["act", "when", "seconds", ""]]
    rows += [[phase.act, phase.at[:19], f"{phase.seconds:,.1f}", phase.detail] for phase in report.phases]
    return Section("Phases", list(rows), "From the journal beside the table, whichever road ran them.")


def _html_section(section: Section) -> str:
    head, *body = section.rows or [[]]
    table = ""
    if section.rows:
        heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body)
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    return f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>{table}</section>"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bytes(value: int | None) -> str:
    return "not recorded" if value is None else f"{value:,} bytes"


def _megabytes(value: int | None) -> str:
    return "not recorded" if value is None else f"{value / 1e6:,.1f} MB"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2430 }}
h1 {{ font-size: 1.5rem; margin-bottom: 0 }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
.subtitle, figcaption {{ color: #5b6575 }} figure {{ margin: 1rem 0 }} img {{ max-width: 100% }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ text-align: left; vertical-align: top }}
td, th {{ padding: .3rem .8rem .3rem 0 }}
tr {{ border-bottom: 1px solid #e3e6eb }} td {{ font-variant-numeric: tabular-nums }}
</style></head>
<body><h1>{title}</h1><p class="subtitle">{subtitle}</p>{plots}{sections}<ul>{notes}</ul></body></html>
"""
