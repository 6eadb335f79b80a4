"""The formats that the corpora are read from: dictd dictionaries, fortune files, and manuals in HTML. No judgements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser

_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SENTENCE_END = re.compile(r"(?<=[.!?:])(?<!\b[A-Za-z]\.)(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)[\"”')\]]*\s+(?=[A-Z\"“'(\[])")
_MARKERS = re.compile(r"^(?:\s*(?:\[[^\]]*\]|<[^>]*>|/[^/]{1,40}/|\d+\.|\([^)]{1,40}\)))+\s*")
_DATE = re.compile(r"^\(?\d{4}-\d{2}-\d{2}\)?$")
_NUMBER = re.compile(r"^(?:(?:Chapter|Appendix|Part)\s+\w+\.|[A-Z0-9]+(?:\.\d+)*\.)\s*")
_ATTRIBUTION = re.compile(r"^\s*--")
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCKS = frozenset({"p", "li", "dt", "dd"})
_LEFT_OUT = frozenset({"pre", "script", "style", "table", "head"})
_LEFT_OUT_DIVISIONS = frozenset(
    {
        "navheader",
        "navfooter",
        "toc",
        "related",
        "sphinxsidebar",
        "toctree-wrapper",
        "contents",
        "footer",
        "refsynopsisdiv",
    }
)


@dataclass(frozen=True)
class Section:
    """What stands between one title of a page and the next.

    Attributes:
        title: without its number.
        paragraphs: as plain text; code and tables are left out.
    """

    title: str
    paragraphs: tuple[str, ...]


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph; one at least, if there is a word."""
    return [sentence for sentence in _SENTENCE_END.split(" ".join(text.split())) if sentence]


def dictd_articles(index: str, data: bytes) -> Iterator[tuple[str, list[str]]]:
    """(headword, paragraphs) of each article; references lose their braces, and paragraphs their leading marks.

    The format is that of dictfmt(1): each line of the index holds a headword, and offset and length of its article in
    digits of base 64. An article begins with its headword; a line indented by one column is its pronunciation.
    """
    places = {tuple(map(_number, line.split("\t")[1:3])) for line in index.splitlines() if not line.startswith("00-")}
    for offset, length in sorted(places):
        headword, *lines = data[offset : offset + length].decode("utf-8", "replace").strip("\n").split("\n")
        body = "\n".join(line for line in lines if not line.strip() or line.startswith("  "))
        blocks = [re.sub(r"[{}\xa0]", "", " ".join(block.split())) for block in re.split(r"\n\s*\n", body)]
        paragraphs = [
            block for block in (_MARKERS.sub("", block) for block in blocks) if block and not _DATE.match(block)
        ]
        if headword.strip() and paragraphs and not headword.startswith("00-"):
            yield headword.strip(), paragraphs


def fortunes(text: str) -> Iterator[str]:
    """The cookies of a file, which a line of `%` parts, without who said it."""
    for cookie in re.split(r"(?m)^%\s*$", text):
        lines = re.sub(r".\x08", "", cookie).splitlines()
        said = next((number for number, line in enumerate(lines) if _ATTRIBUTION.match(line)), len(lines))
        if words := " ".join(" ".join(lines[:said]).split()):
            yield words


def html_sections(page: str) -> Iterator[Section]:
    """The sections of a page by DocBook or Sphinx, in their order, without navigation, code and tables."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    reader.end_block()
    for title, paragraphs in reader.sections:
        yield Section(_NUMBER.sub("", title), tuple(paragraphs))


class _Reader(HTMLParser):
    """Collects blocks of text under the heading before them."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[tuple[str, list[str]]] = []
        self._text: list[str] = []
        self._left_out: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = set((dict(attrs).get("class") or "").split())
        if self._left_out:
            if tag == self._left_out[0]:
                self._left_out.append(tag)
        elif tag in _LEFT_OUT or (tag in {"div", "nav", "a"} and classes & {*_LEFT_OUT_DIVISIONS, "headerlink"}):
            self._left_out.append(tag)
        elif tag in _HEADINGS or tag in _BLOCKS:
            self.end_block()
            self._in_heading = tag in _HEADINGS

    def handle_endtag(self, tag: str) -> None:
        if self._left_out:
            if tag == self._left_out[0]:
                self._left_out.pop()
        elif tag in _HEADINGS or tag in _BLOCKS:
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self._left_out:
            self._text.append(data)

    def end_block(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if self._in_heading:
            self.sections.append((text, []))
        elif text and self.sections:
            self.sections[-1][1].append(text)
        self._in_heading = False


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64.index(digit)
    return value
