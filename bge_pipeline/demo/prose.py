"""Documentation markup to plain sentences, and sentences to transcript-like segments. Knows no Python library."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MIN_WORDS = 20
MAX_WORDS = 80
_COMFORTABLE_WORDS = 40

_FUNCTION_WORDS = frozenset(
    "a an and are as at be but by can for from has have if in is it its may must not of on one or other return "
    "returned returns same that the then there these they this to used when where which will with you".split()
)
_PUNCTUATION = "\"'`*.,;:()"
_TYPOGRAPHY = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "...", "\u00a0": " "}
)
_MARKUP = (
    (re.compile(r"(\w-)\n\s*(?=[a-z])"), r"\1"),  # the reference wraps at hyphens
    (re.compile(r":[a-z]+(?::[a-z]+)?:`~?([^`<]+?)(?:\s*<[^`]*>)?`"), r"\1"),
    (re.compile(r"``?([^`]+)``?_?"), r"\1"),
    (re.compile(r"(?<![\w*\"'`])\*\*?([A-Za-z_][^*]{0,200}?)(?<=\S)\*\*?(?![\w*])"), r"\1"),
    (re.compile(r"^\s*[:@](?:param|arg|raises?|type|keyword|ivar|cvar)\s+([^:]+):", re.MULTILINE), r"\1:"),
    (re.compile(r"^\s*[:@](returns?|rtype):", re.MULTILINE), r"\1:"),
    (re.compile(r"^\s*(?:[*+-]|\d{1,2}[.)]|\(\d\))\s+", re.MULTILINE), ""),
    (re.compile(r"\s*\[\d{1,2}\](?=[\s.,;]|$)"), ""),
    (re.compile(r"::(?=\s|$)"), ":"),
    (re.compile(r"\s+"), " "),
)
_SENTENCE_END = re.compile(r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\betc\.)(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")
_CLAUSE_END = re.compile(r"(?<=[;:,])\s+")
_LABEL = re.compile(r"(?:class |exception |async |static method |classmethod )?[A-Za-z_][\w.]*(?:\(.*\))?")
_NOT_PROSE = re.compile(
    r"::=|\S {3,}\S|^\s*[=*~#^+|-]{3,}"  # grammar, columns, rules and boxes
    r"|^\s*[\w.\[\]]+ = |^( *)(?:async|class|def|except|for|if|try|while|with)\b.*:\n\1 +\S",  # statements
    re.MULTILINE,
)
_SIGNATURE = re.compile(r"\s*[A-Za-z_][\w.]*\(.*\)(?:\s*->.*)?")


@dataclass(frozen=True)
class Passage:
    """One paragraph, or one documented object: sentences that belong together."""

    sentences: tuple[str, ...]


def passages(document: str, label: str = "") -> list[Passage]:
    """The prose of a plain-text document; code, grammar, tables, headings and doctests are left out.

    Args:
        document: reStructuredText or what Sphinx' text builder made of it, common indentation removed.
        label: name of what is documented; it opens the first passage.
    """
    found: list[Passage] = []
    for block in re.split(r"\n[ \t]*\n", document.expandtabs().translate(_TYPOGRAPHY)):
        body = _without_examples(textwrap.dedent(block)).strip()
        if _is_label(body):
            label = _LABEL.match(body).group().split("(")[0]  # type: ignore[union-attr]
        elif _is_prose(body) or (label and _is_summary(body)):
            text = _without_markup(f"{label}: {body}" if label else body).rstrip(",;")
            sentences = split_sentences(text if text.endswith((".", "!", "?", ":")) else f"{text}.")
            found.append(Passage(tuple(sentences)))
            label = ""
    return found


def split_sentences(text: str) -> list[str]:
    """Sentences of at most `MAX_WORDS` words; longer ones are cut where a clause ends, or else between words."""
    sentences: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        if len(sentence.split()) <= MAX_WORDS:
            sentences.append(sentence)
            continue
        clause: list[str] = []
        for part in _CLAUSE_END.split(sentence):
            words = part.split()
            if clause and len(clause) + len(words) > MAX_WORDS // 2:
                sentences.append(" ".join(clause))
                clause = []
            clause += words
            while len(clause) > MAX_WORDS:
                sentences.append(" ".join(clause[:MAX_WORDS]))
                clause = clause[MAX_WORDS:]
        sentences.append(" ".join(clause))
    return [sentence for sentence in sentences if sentence]


def pack(source: Iterable[Passage]) -> Iterator[str]:
    """Segments of `MIN_WORDS` to `MAX_WORDS` words, cut between passages where that fits, else between sentences.

    What is too short on its own joins the segment before it, or is left out.
    """
    previous: list[str] = []
    for words in _cut(source):
        if len(words) >= MIN_WORDS:
            if previous:
                yield " ".join(previous)
            previous = words
        elif previous and len(previous) + len(words) <= MAX_WORDS:
            previous = previous + words
    if previous:
        yield " ".join(previous)


def _cut(source: Iterable[Passage]) -> Iterator[list[str]]:
    """The words of the source in pieces of at most `MAX_WORDS`, nearly all of them of at least `MIN_WORDS`."""
    current: list[str] = []
    for passage in source:
        for sentence in passage.sentences:
            words = sentence.split()
            if len(current) + len(words) > MAX_WORDS:
                yield current
                current = []
            current = current + words
            if len(current) >= _COMFORTABLE_WORDS:
                yield current
                current = []
        if len(current) >= MIN_WORDS:
            yield current
            current = []
    yield current


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _without_examples(block: str) -> str:
    """The block without an interactive session at its end and without signatures at its start."""
    lines = re.split(r"^\s*>>>", block, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    while len(lines) > 1 and _SIGNATURE.fullmatch(lines[0]):
        lines = lines[1:]
    return "\n".join(lines)


def _is_label(block: str) -> bool:
    """Whether the block is the signature of something that the next block describes."""
    first = block.split("\n", 1)[0]
    return bool(_LABEL.fullmatch(first)) and any(mark in first for mark in "(._") and not block.endswith(".")


def _is_prose(block: str) -> bool:
    """Whether most of the block is English words with English function words between them."""
    words = [word.strip(_PUNCTUATION) for word in block.split()]
    functional = sum(word.lower() in _FUNCTION_WORDS for word in words)
    return (
        len(words) >= 4
        and functional >= (1 if _is_sentence(block) else max(1, 0.1 * len(words)))
        and _is_wordy(block, words, symbols_share=0.04)
    )


def _is_summary(block: str) -> bool:
    """Whether the block is the short sentence that a docstring begins with: names and symbols are welcome."""
    words = [word.strip(_PUNCTUATION) for word in block.split()]
    return len(words) >= 2 and _is_sentence(block) and _is_wordy(block, words, symbols_share=0.1)


def _is_sentence(block: str) -> bool:
    return block[:1].isupper() and block.endswith((".", ":", "!", "?", ")"))


def _is_wordy(block: str, words: list[str], *, symbols_share: float) -> bool:
    names = sum(all(part.isidentifier() for part in word.split(".")) for word in words)
    symbols = sum(character in "=<>{}[]|\\%+" for character in block)
    return names >= 0.6 * len(words) and symbols <= symbols_share * len(block) and not _NOT_PROSE.search(block)
