"""Labelled corpora of several kinds that need no model hub: the demo's questions, and texts from Debian's packages.

Passages and queries are cut from the same text by a rule that no retriever had a say in; each builder's docstring
states its rule. A query carries the share of its words that its answer holds, so that figures can be given by group.
The packages are read where they are installed, or else fetched by `apt-get download` into a cache folder.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.corpus_formats import Section, dictd_articles, fortunes, html_sections, sentences
from bge_pipeline.demo.corpus import segments
from bge_pipeline.demo.questions import judge
from bge_pipeline.quality.judgements import JudgedQueries

Half = Literal["tuning", "held out"]
Overlap = Literal["few", "some", "many"]

CACHE = Path.home() / ".cache" / "bge-pipeline-corpora"
QUERIES = 500
"""At most so many of a corpus, those whose hash is lowest."""
PASSAGE_WORDS = 100

_STOP_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could did do does for from had has "
    "have he her him his how i if in into is it its may me more most my no not of on one only or other our out over own "
    "same she should so some such than that the their them then there these they this those through to too under up "
    "very was we were what when where which while who whom why will with would you your".split()
)
_OPERATOR = re.compile(r'"|(?<!\S)-+')
_WORD = re.compile(r"[a-z0-9_]+")
_ENDING = re.compile(r"(?<=[a-z]{3})(?:ings?|ed|es|ly|s|e)$")


@dataclass(frozen=True)
class Corpus:
    """Passages, queries and what answers them.

    Attributes:
        name: for tables.
        kind: what a query is and what answers it, in a few words.
        passages: text by passage id.
        judged: the queries; its passage ids are keys of `passages`.
        overlap: by query id, the share (0 to 1) of its words that stand in its relevant passage, in the best of several.
    """

    name: str
    kind: str
    passages: Mapping[str, str]
    judged: JudgedQueries
    overlap: Mapping[str, float]

    def half(self, half: Half) -> JudgedQueries:
        """The queries to choose by, or those to report on; a hash of the query's text decides."""
        return self.only(lambda query_id: (_digest(self.judged.queries[query_id]) % 2 == 0) == (half == "tuning"))

    def group(self, overlap: Overlap) -> JudgedQueries:
        """The queries that share few (under a third), some or many (two thirds and more) words with their answer."""
        return self.only(lambda query_id: overlap_group(self.overlap[query_id]) == overlap)

    def only(self, wanted: Callable[[str], bool]) -> JudgedQueries:
        """The queries whose id is wanted."""
        queries = {query_id: query for query_id, query in self.judged.queries.items() if wanted(query_id)}
        return JudgedQueries(queries, {query_id: self.judged.qrels[query_id] for query_id in queries})


def load_corpora(cache: Path = CACHE) -> list[Corpus]:
    """All of them, the same on every run of one version of Python and of the packages."""
    jargon = read_dictionary("dict-jargon", "jargon", cache)
    foldoc = read_dictionary("dict-foldoc", "foldoc", cache)
    policy = package_folder("debian-policy", "usr/share/doc/debian-policy/policy.html", cache)
    postgresql = package_folder("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html", cache)
    cookies = package_folder("fortunes", "usr/share/games/fortunes", cache)
    left_out = {"ascii-art", "translate-me"}
    files = [path for path in sorted(cookies.iterdir()) if not path.suffix and path.name not in left_out]
    return [
        demo_corpus(),
        definitions_corpus("jargon, definitions", jargon),
        headwords_corpus("jargon, headwords", jargon),
        definitions_corpus("foldoc, definitions", foldoc),
        sections_corpus("debian policy", read_pages(policy.glob("*.html"))),
        sections_corpus("postgresql manual", read_pages(postgresql.glob("*.html"))),
        halves_corpus("fortunes", (f for path in files for f in fortunes(path.read_text("utf-8", "replace")))),
    ]


def demo_corpus() -> Corpus:
    """The demo's questions as they are, over all its segments; people wrote the questions and the rules that judge."""
    corpus = list(segments())
    judged = judge((row, segment.video_id, segment.text) for row, segment in enumerate(corpus))
    passages = {str(row): segment.text for row, segment in enumerate(corpus)}
    return _corpus("demo", "question to passages that answer it", passages, judged.queries, judged.qrels)


def definitions_corpus(name: str, articles: Iterable[tuple[str, Sequence[str]]]) -> Corpus:
    """A definition's first sentence, without the words of its headword, asks for the rest of its entry.

    The rest keeps the headword and has lost that sentence. An entry with fewer than 15 further words, or a sentence of
    fewer than five words, asks for nothing and stays in whole.
    """
    passages: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, (headword, paragraphs) in enumerate(articles):
        first, *others = sentences(paragraphs[0])
        named = set(_words(headword))
        query = " ".join(word for word in first.split() if not named.intersection(_words(word)))
        rest = [" ".join(others), *paragraphs[1:]] if others else paragraphs[1:]
        asks = len(query.split()) >= 5 and sum(len(paragraph.split()) for paragraph in rest) >= 15
        ids = _add(passages, f"{number}", (f"{headword}: {p}" for p in pack(rest if asks else paragraphs)))
        if asks:
            queries[f"{number}"], qrels[f"{number}"] = query, dict.fromkeys(ids, 1)
    return _corpus(name, "first sentence of a definition to the rest of it", passages, queries, qrels)


def headwords_corpus(name: str, articles: Iterable[tuple[str, Sequence[str]]]) -> Corpus:
    """A glossary's headword asks for the passages of its entry, which begin with it."""
    passages: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, (headword, paragraphs) in enumerate(articles):
        ids = _add(passages, f"{number}", (f"{headword}: {p}" for p in pack(paragraphs)))
        queries[f"{number}"], qrels[f"{number}"] = headword, dict.fromkeys(ids, 1)
    return _corpus(name, "headword to its entry", passages, queries, qrels)


def sections_corpus(name: str, pages: Iterable[Sequence[Section]]) -> Corpus:
    """A section's title asks for the passages between it and the next title; the title is no part of them.

    Titles that occur more than once ask for nothing, and so do those of sections of fewer than 15 words. A reference page
    ("NAME — purpose") is one section, and its purpose is the title.
    """
    sections = [section for page in pages for section in _by_purpose(page)]
    times = Counter(section.title.lower() for section in sections)
    passages: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, section in enumerate(sections):
        ids = _add(passages, f"{number}", pack(section.paragraphs))
        long_enough = sum(len(paragraph.split()) for paragraph in section.paragraphs) >= 15
        if long_enough and section.title and times[section.title.lower()] == 1:
            queries[f"{number}"], qrels[f"{number}"] = section.title, dict.fromkeys(ids, 1)
    return _corpus(name, "title of a section to its passages", passages, queries, qrels)


def halves_corpus(name: str, texts: Iterable[str]) -> Corpus:
    """The first half of a text of 24 to 200 words asks for the second half; only second halves are searched."""
    passages: dict[str, str] = {}
    queries: dict[str, str] = {}
    for number, text in enumerate(dict.fromkeys(texts)):
        words = text.split()
        if 24 <= len(words) <= 200:
            queries[f"{number}"] = " ".join(words[: len(words) // 2])
            passages[f"{number}"] = " ".join(words[len(words) // 2 :])
    qrels = {query_id: {query_id: 1} for query_id in queries}
    return _corpus(name, "first half of a text to the second", passages, queries, qrels)


def pack(paragraphs: Iterable[str], most_words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Passages of whole sentences, of `most_words` words unless one sentence has more; short paragraphs are joined."""
    collected: list[str] = []
    for sentence in (sentence for paragraph in paragraphs for sentence in sentences(paragraph)):
        if collected and len(" ".join([*collected, sentence]).split()) > most_words:
            yield " ".join(collected)
            collected = []
        collected.append(sentence)
    if collected:
        yield " ".join(collected)


def plain(query: str) -> str:
    """The query without quotation marks and leading hyphens, which a search would take for its operators."""
    return " ".join(_OPERATOR.sub(" ", query).split())


def word_overlap(query: str, passage: str) -> float:
    """Share of the query's different words, without stop words and endings, that the passage has."""
    wanted = set(_words(query))
    return len(wanted.intersection(_words(passage))) / len(wanted) if wanted else 0.0


def overlap_group(share: float) -> Overlap:
    """Few under a third, many from two thirds on, some between."""
    return "few" if share < 1 / 3 else "some" if share < 2 / 3 else "many"


def package_folder(package: str, inside: str, cache: Path = CACHE) -> Path:
    """Folder `inside` of a Debian package: installed, or fetched into the cache and unpacked there.

    Raises:
        SystemExit: it is not installed, and there is no apt-get or dpkg to fetch it with, or they failed.
    """
    installed, unpacked = Path("/") / inside, cache / package / inside
    if _has_files(installed):
        return installed
    if not _has_files(unpacked):
        downloads = cache / "debs"
        downloads.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", package], cwd=downloads, check=True, capture_output=True)
            deb = max(downloads.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
            subprocess.run(["dpkg", "-x", str(deb), str(cache / package)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"expected the Debian package {package}, installed or from `apt-get download`: {error}"
            ) from error
    return unpacked


def read_dictionary(package: str, name: str, cache: Path = CACHE) -> list[tuple[str, list[str]]]:
    """(headword, paragraphs) of each entry of a dictd dictionary."""
    folder = package_folder(package, "usr/share/dictd", cache)
    index = (folder / f"{name}.index").read_text(encoding="utf-8")
    return list(dictd_articles(index, gzip.decompress((folder / f"{name}.dict.dz").read_bytes())))


def read_pages(paths: Iterable[Path]) -> Iterator[list[Section]]:
    """The sections of each page of a manual, without release notes and the index of words."""
    for path in sorted(paths):
        if not path.name.startswith(("release", "bookindex", "genindex", "search", "index.", "upgrading-checklist")):
            yield list(html_sections(path.read_text(encoding="utf-8")))


def _by_purpose(page: Sequence[Section]) -> Sequence[Section]:
    first = next((section.paragraphs[0] for section in page if section.paragraphs), "")
    name, dash, purpose = first.partition(" — ")
    if not dash or len(name.split()) > 6 or len(purpose.split()) < 2:
        return page
    paragraphs = [paragraph for section in page for paragraph in section.paragraphs]
    return [Section(purpose, tuple(paragraphs[1:]))]


def _add(passages: dict[str, str], prefix: str, texts: Iterable[str]) -> list[str]:
    """Store the texts under `prefix.0`, `prefix.1` and so on; the ids."""
    found = {f"{prefix}.{number}": text for number, text in enumerate(texts)}
    passages.update(found)
    return list(found)


def _corpus(
    name: str,
    kind: str,
    passages: dict[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, dict[str, int]],
) -> Corpus:
    chosen = sorted(sorted(queries, key=lambda query_id: _digest(queries[query_id]))[:QUERIES])
    judged = JudgedQueries({i: plain(queries[i]) for i in chosen}, {i: qrels[i] for i in chosen})
    overlap = {i: max(word_overlap(queries[i], passages[row]) for row in qrels[i]) for i in chosen}
    return Corpus(name, kind, passages, judged, overlap)


def _words(text: str) -> list[str]:
    return [_ENDING.sub("", word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
