"""A benchmark report as pages: Markdown for the Dagster UI, self-contained HTML, JSON."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bge_pipeline.quality.side_by_side import Comparison
from bge_pipeline.report.benchmark import BenchmarkReport
from bge_pipeline.report.plots import report_plots
from bge_pipeline.report.sections import (
    NOTHING,
    Headline,
    Section,
    circumstances,
    headlines,
    sections,
    side_by_side_sections,
    title,
)


@dataclass(frozen=True)
class WrittenReport:
    """Where a report was written."""

    html: Path
    markdown: Path
    json: Path


def write_report(report: BenchmarkReport, folder: Path) -> WrittenReport:
    """Write the three forms of a report into a folder, named by its time and table; each is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = _claimed_stem(folder, report)
    written = WrittenReport(*(folder / f"{stem}{suffix}" for suffix in (".html", ".md", ".json")))
    _write(written.json, json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    _write(written.markdown, as_markdown(report))
    _write(written.html, as_html(report))  # the last, as the page is what others are led to
    return written


def _claimed_stem(folder: Path, report: BenchmarkReport) -> str:
    """A name that no other report has, not even one of the same second; its JSON file is made, empty."""
    time = report.created_at.replace(":", "").replace("-", "")[:15]
    table = re.sub(r"\W+", "-", report.table).strip("-")
    number = 1
    while True:
        stem = f"benchmark-{time}-{table}" + f"-{number}" * (number > 1)
        try:
            (folder / f"{stem}.json").open("x").close()
        except FileExistsError:
            number += 1
        else:
            return stem


def _write(path: Path, content: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def summary_as_markdown(report: BenchmarkReport) -> str:
    """The figures that a reader looks for first, as one table."""
    found = headlines(report)
    rows = [[h.label for h in found], [h.figure for h in found], [h.note for h in found]]
    return markdown_table(rows, bold_rows=(1,))


def as_markdown(report: BenchmarkReport) -> str:
    """The report as Markdown, plots inside as data URIs, which the Dagster UI shows."""
    facts = _inert(" · ".join(f"{name}: {value}" for name, value in circumstances(report).items()))
    # In one paragraph, so that two stand side by side where there is room.
    plots = "\n".join(f"![{name}]({_data_uri(svg)})" for name, svg in report_plots(report).items())
    parts = [
        f"# {_inert(title(report))}",
        summary_as_markdown(report),
        facts,
        plots,
        _markdown_sections(sections(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_as_markdown(comparison: Comparison) -> str:
    """The results side by side as Markdown, for the Dagster UI."""
    return _markdown_sections(side_by_side_sections(comparison)) + "\n"


def _markdown_sections(found: Sequence[Section]) -> str:
    parts = [part for s in found for part in (f"## {_inert(s.title)}", _inert(s.text), markdown_table(s.rows)) if part]
    return "\n\n".join(parts)


def markdown_table(rows: Sequence[Sequence[str]], *, bold_rows: Collection[int] = ()) -> str:
    """A table of text, its first row the head, as Markdown; columns of numbers are aligned to the right."""
    if not rows:
        return ""
    rule = ["--:" if is_numeric else "---" for is_numeric in _numeric_columns(rows)]
    cells = [
        [f"**{shown}**" if number in bold_rows and shown else shown for shown in map(_inert, row)]
        for number, row in enumerate(rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


_MARKDOWN = re.compile(r"[\\`*\[\]~$#]|(?<![^\W_])_|_(?![^\W_])")
"""What CommonMark and GitHub's tables, strike-through and formulas make of characters; `_` within a word is none of it."""
_BARE_LINK = re.compile(r"(?:https?|ftp)(?=://)|\bwww(?=\.)", re.IGNORECASE)
"""What GitHub's Markdown makes a link of where nobody wrote one."""


def _inert(text: str) -> str:
    """Text that may be a row's or a name of the database, in one line, as Markdown in which nothing of it is alive."""
    marked = escape(_MARKDOWN.sub(r"\\\g<0>", " ".join(text.split())), quote=False).replace("|", "&#124;")
    return _BARE_LINK.sub(lambda found: found[0][:-1] + f"&#{ord(found[0][-1])};", marked)


def as_html(report: BenchmarkReport) -> str:
    """The report as one HTML file that needs no other."""
    return html_page(
        title(report), circumstances(report), headlines(report), sections(report), plots=report_plots(report)
    )


def html_page(
    heading: str,
    facts: Mapping[str, str],
    figures: Sequence[Headline],
    parts: Sequence[Section],
    *,
    plots: Mapping[str, bytes] | None = None,
) -> str:
    """A page that needs no other file; text is shown as it is, whatever it holds."""
    cards = "".join(
        f"<li><span>{escape(h.label)}</span><b>{escape(h.figure)}</b><small>{escape(h.note)}</small></li>"
        for h in figures
    )
    terms = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    images = "".join(f'<img alt="{escape(name)}" src="{_data_uri(svg)}">' for name, svg in (plots or {}).items())
    return _PAGE.format(
        title=escape(heading),
        facts=terms,
        cards=cards,
        plots=images,
        sections="".join(_html_section(section) for section in parts),
    )


def _html_section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    return f"<section><h2>{escape(section.title)}</h2>{text}{_html_table(section.rows)}</section>"


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    numeric = _numeric_columns(rows)

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (
            f"<{tag}{_html_class(cell, is_numeric=is_numeric, is_head=tag == 'th')}>{escape(cell)}</{tag}>"
            for cell, is_numeric in zip(cells, numeric, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    head, *body = rows
    lines = "".join(line("td", cells) for cells in body)
    return f"<div class=wide><table><thead>{line('th', head)}</thead><tbody>{lines}</tbody></table></div>"


def _html_class(cell: str, *, is_numeric: bool, is_head: bool) -> str:
    if is_numeric:
        return " class=number"
    if is_head:
        return ""
    return {"yes": " class=yes", "NO": " class=no", "new": " class=yes", "gone": " class=no"}.get(cell, "")


def _numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers alone, with or without a unit."""
    body = [list(column) for column in zip(*rows[1:], strict=True)]
    number = re.compile(rf"[\d.,]+( (MB|bytes))?|{NOTHING}|not recorded")
    return [all(number.fullmatch(cell) for cell in column) for column in body]


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2.5rem auto; padding: 0 1.5rem; color: #1d2430 }}
h1 {{ font-size: 1.6rem; margin: 0 0 1rem }} h2 {{ font-size: 1.1rem; margin: 2.5rem 0 .5rem }} p {{ margin: 0 0 .5rem }}
dl {{ display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 0; color: #5b6575; font-size: .9rem }}
dl div {{ display: flex; gap: .5rem }} dd {{ margin: 0; color: #1d2430 }}
ul {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; list-style: none }}
ul {{ padding: 0; margin: 1.5rem 0 2rem }} small, li span {{ color: #5b6575; font-size: .8rem }}
li {{ display: flex; flex-direction: column; border: 1px solid #e3e6eb; border-radius: .5rem; padding: .7rem .9rem }}
li b {{ font-size: 1.25rem; font-weight: 600 }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.5rem 2rem }}
img {{ width: 100%; height: auto }} .wide {{ overflow-x: auto }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; vertical-align: top; padding: .35rem 1.5rem .35rem 0 }}
th {{ font-weight: 500; font-size: .85rem; color: #5b6575; white-space: nowrap }} tr {{ border-bottom: 1px solid #e3e6eb }}
td:first-child {{ white-space: nowrap }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.yes {{ color: #1a7f47 }} .no {{ color: #b3261e; font-weight: 600 }}
</style></head>
<body><h1>{title}</h1><ul>{cards}</ul><dl>{facts}</dl><div class="plots">{plots}</div>{sections}</body></html>
"""
