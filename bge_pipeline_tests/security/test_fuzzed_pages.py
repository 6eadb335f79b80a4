"""Whatever rows and names hold, a report has the same elements as one of harmless words, and shows what they hold as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bge_pipeline.quality.content import ColumnContent
from bge_pipeline.quality.gate import GateCheck, GateResult
from bge_pipeline.quality.metrics import Difference
from bge_pipeline.quality.search_runs import SearchRun
from bge_pipeline.quality.side_by_side import Comparison, Hit, SideBySide
from bge_pipeline.quality.speed import EncodeRun
from bge_pipeline.report import comparison, diagnosis, pages
from bge_pipeline.report.benchmark import BenchmarkReport, PhaseTime, Storage
from bge_pipeline.report.sections import NOTHING

FRAGMENTS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table>", "</style>", "</title>", "<!--",
    "-->", "<![CDATA[", "<b>", "&lt;", "&#60;script>", "\"'><svg/onload=alert(1)>", "javascript:alert(1)",
    "[a](javascript:alert(1))", "![x](http://127.0.0.1/x.png)", "[a]: http://x", "[a][a]", "<http://x.org>",
    "https://x.org/a", "www.x.org", "me@x.org", "**bold**", "*", "_", "__", "_a_", "a_b", "`", "```", "~~", "$x$",
    "|", "||", "\\", "\\|", "\\\\", "#", "# h", "\n# h", "\n\n", "\r", "---", "\n---\n", "- ", "1. ", "> ", "+ ", "=",
    "    code", "\t", "{title}", "{}", "{0}", "%s", "\u202e", "\x1b[31m", "\u2028", "yes", "NO", "new", "gone", "1",
    "—", " ", "ä", "本", "🙂",
]  # fmt: skip
NASTY = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), min_size=1, max_size=8).map("".join)
TELLING = NASTY.filter(lambda text: text.strip() not in ("", NOTHING) and text.isprintable())
"""Texts that can be seen, and do not say that nothing was measured."""
WORD = "word"
# What a page is of: each takes one text wherever a row, a name or a server's message can get into it.


def report_of(text: str) -> BenchmarkReport:
    old, new = (Hit(text, text, 2), Hit(text, text, None)), (Hit(text, text, None), Hit(text, text, 1))
    pair = SideBySide(text, None, old, new)
    return BenchmarkReport(
        created_at="2026-11-22T21:00:51+00:00",
        table=text,
        phase="swapped",
        rows=2_000,
        model=text,
        dimensions=384,
        device=text,
        precision=text,
        hardware=text,
        versions={"PostgreSQL": text},
        encode=(EncodeRun(32, 512, 28_000, 2.0, None),),
        rerank=None,
        search=(
            SearchRun("old", "dense", False, 50, 12.34, 20.0, encodes=True, ndcg=0.4, index=text),
            SearchRun("new", "dense", False, 50, 5.67, 9.0, encodes=True, ndcg=0.5, index=text),
        ),
        storage=Storage(6_152, 1_544, 34_000_000, 24_000_000, 3_000_000),
        phases=(PhaseTime("expand", "2026-11-22 20:00:00.1+00", 0.1, f"column {text}"),),
        gate=GateResult(passed=False, mode="warn", checks=(GateCheck("ann_recall", 0.9, 0.95, False, f"saw {text}"),)),
        index_seconds=0.2,
        lock_milliseconds=8.0,
        backfill_seconds=6.5,
        backfill_texts_per_second=300.0,
        write_rows_per_second=9_000.0,
        notes=(f"note {text}",),
        side_by_side=Comparison(text, text, text, text, (pair,)),
    )


def leaderboard_of(text: str) -> comparison.ModelComparison:
    candidate = comparison.Candidate(
        text, True, "fp32", "cpu", 384, 0.5, None, 10.0, 60.0, 0.0, 0.5, 10**9, None, False
    )
    other = comparison.Candidate(
        text,
        False,
        "fp32",
        "cpu",
        384,
        0.4,
        Difference(-0.1, -0.2, 0.0, 0.01, 0.95),
        10.0,
        60.0,
        0.0,
        0.5,
        10**9,
        1.0,
        False,
    )
    return comparison.ModelComparison(text, "nDCG@20", 100, 20, (candidate, other), {f"model {text}": f"since {text}"})


def diagnosis_of(text: str) -> diagnosis.Diagnosis:
    content = ColumnContent(**dict.fromkeys(ColumnContent.__dataclass_fields__, 1))
    finding = diagnosis.Finding("index", "error", f"found {text}", f"run {text}")
    return diagnosis.Diagnosis(text, text, text, text, content, (finding,))


HTML = {
    "report": lambda text: pages.as_html(report_of(text)),
    "leaderboard": lambda text: comparison.as_html(leaderboard_of(text)),
    "diagnosis": lambda text: diagnosis.as_html(diagnosis_of(text)),
}
MARKDOWN = {
    "report": lambda text: pages.as_markdown(report_of(text)),
    "summary": lambda text: pages.summary_as_markdown(report_of(text)),
    "side by side": lambda text: pages.comparison_as_markdown(report_of(text).side_by_side),
    "leaderboard": lambda text: comparison.as_markdown(leaderboard_of(text)),
}


class Elements(HTMLParser):
    """The elements of a page with their attributes, but for what a cell's text may choose, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        named = [name for name, _ in attrs if name != "class"]
        classes = {value for name, value in attrs if name == "class"}
        assert classes <= {"yes", "no", "number", "wide", "plots"}
        self.found.append((tag, *named))

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}",))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):  # noqa: ARG002 - HTMLParser's name for it
        self.found.append(("comment",))

    def unknown_decl(self, data):  # noqa: ARG002
        self.found.append(("declaration",))


def structure(source: str) -> list[str]:
    """The tokens of Markdown with GitHub's tables, its texts left out."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [
        inner.type
        for token in parser.parse(source)
        for inner in (token, *(token.children or ()))
        if inner.type not in ("text", "text_special")
    ]


def shown(source: str) -> str:
    """The text of Markdown as a reader sees it, in one line."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = [token.children or [] for token in parser.parse(source) if token.type == "inline"]
    return " ".join("".join(child.content for child in children if child.type != "image") for children in tokens)


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="class")  # of a function alone
def quickly_drawn() -> Iterator[None]:
    """The plots, which take most of the time, are drawn once: their names have a test of their own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pages, "report_plots", lambda _: {"Speed": b"<svg/>"})
        patched.setattr(comparison, "scatter", lambda *_: b"<svg/>")
        yield


@pytest.mark.usefixtures("quickly_drawn")
@pytest.mark.parametrize("page", HTML)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TELLING)
@example(text="".join(fragment for fragment in FRAGMENTS if fragment.isprintable()))
def test_an_html_page_has_no_element_of_a_rows_or_a_names(page: str, text: str):
    elements, harmless = Elements(HTML[page](text)), Elements(HTML[page](WORD))
    assert elements.found == harmless.found
    assert in_one_line(text)[:100] in in_one_line(elements.text)


@pytest.mark.usefixtures("quickly_drawn")
@pytest.mark.parametrize("page", MARKDOWN)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TELLING)
@example(text="".join(FRAGMENTS).replace("\x1b", ""))
def test_a_markdown_page_has_no_element_of_a_rows_or_a_names(page: str, text: str):
    source = MARKDOWN[page](text)
    assert structure(source) == structure(MARKDOWN[page](WORD))
    assert not re.search(r"https?://|\bwww\.", source), "a bare link, which GitHub makes a link of"
    if page in ("report", "side by side"):
        assert in_one_line(text)[:100] in in_one_line(shown(source))


def test_the_judge_would_find_one():
    assert structure("a *b*") != structure("a b")
    assert structure("| a |\n| --- |\n| [b](c) |") != structure("| a |\n| --- |\n| b |")
    assert Elements("<p>a<b>b</p>").found != Elements("<p>ab</p>").found


def test_the_plots_are_there_too():
    assert Elements(pages.as_html(report_of("<b>"))).found == Elements(pages.as_html(report_of(WORD))).found
    assert pages.as_html(report_of("<b>")).count("<img alt=") == 4


@pytest.mark.parametrize("name", ["a$b", r"$\frac{", "$$", "x^2_{$"])
def test_a_name_with_dollar_signs_is_no_formula_in_a_plot(name: str):
    assert "svg" in comparison.as_html(leaderboard_of(name))
