"""The demo corpus: real English that every machine has, cut into transcript-like segments at run time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from bge_pipeline.demo.prose import Passage, pack, passages
from bge_pipeline.demo.python_docs import Document, language_reference, library_docstrings

WORDS_PER_SECOND = 2.5
"""150 words a minute, an ordinary speaking rate."""

_SPEAKERS = 3
_JOINT = " … "
"""Joins recombined halves. The cleaned corpus has no such character, so that a new text repeats no other."""


@dataclass(frozen=True, slots=True)
class Source:
    """One 'video': a topic of the language reference or a module of the standard library.

    Attributes:
        video_id: unique, for example `topic:yield`, `module:functools`, or `module:functools#2` in a grown corpus.
        title: what a person would call it.
    """

    video_id: str
    title: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Some 20 to 80 words that one speaker says in a video; (video_id, start_sec, end_sec) is unique.

    Attributes:
        video_id: the source it belongs to.
        start_sec, end_sec: position in seconds.
        speaker_label: as a diarisation tool writes it, for example `SPEAKER_01`.
        text: plain English.
        metadata: plain JSON values: `kind` (topic or module), `words`, and `recombined` in a grown corpus.
    """

    video_id: str
    start_sec: float
    end_sec: float
    speaker_label: str
    text: str
    metadata: dict[str, Any] = field(hash=False)


def segments(rows: int | None = None) -> Iterator[Segment]:
    """The corpus, source by source, the same on every run of one Python installation.

    Fewer rows than the corpus has are an even slice of it. More are the corpus and then new texts, each made of the
    first half of one segment and the second half of another, in constant memory and without repetition.

    Raises:
        ValueError: `rows` is negative or more than recombination can make (tens of millions).
    """
    corpus = _corpus().segments
    if rows is None or rows == len(corpus):
        return iter(corpus)
    if rows < 0:
        raise ValueError(f"expected at least 0 rows, got {rows}")
    if rows < len(corpus):
        return (corpus[index * len(corpus) // rows] for index in range(rows))
    return _grown(rows)


def sources(rows: int | None = None) -> Iterator[Source]:
    """The sources of exactly the segments that `segments(rows)` gives, in the order of their first segment."""
    titles = _corpus().titles
    for video_id, _ in groupby(segment.video_id for segment in segments(rows)):
        original, _, part = video_id.partition("#")
        yield Source(video_id, f"{titles[original]} (part {part})" if part else titles[original])


def corpus_rows() -> int:
    """How many segments the corpus has before it is grown."""
    return len(_corpus().segments)


class _Corpus(NamedTuple):
    segments: tuple[Segment, ...]
    titles: dict[str, str]


@lru_cache(maxsize=1)
def _corpus() -> _Corpus:
    """Both in one reading: to parse the sources of the library takes seconds."""
    seen_passages: set[str] = set()
    seen_texts: set[str] = set()
    found: list[Segment] = []
    titles: dict[str, str] = {}
    for video_id, documents in _documents_by_source():
        titles[video_id] = _title(video_id, documents[0])
        texts = [text for text in dict.fromkeys(pack(_unseen(documents, seen_passages))) if text not in seen_texts]
        seen_texts.update(texts)
        found += _spoken(video_id, texts)
    return _Corpus(tuple(found), titles)


def _documents_by_source() -> Iterator[tuple[str, list[Document]]]:
    for kind, pairs in (("topic", language_reference()), ("module", library_docstrings())):
        for name, group in groupby(pairs, key=lambda pair: pair[0]):
            yield f"{kind}:{name}", [document for _, document in group]


def _title(video_id: str, document: Document) -> str:
    kind, _, name = video_id.partition(":")
    if kind == "topic":
        return next(line for line in document.text.splitlines() if line.strip("*= "))
    subject = document.text.strip().splitlines()[0].partition(". ")[0].rstrip(".")
    return name if document.label else f"{name}: {subject}"


def _unseen(documents: list[Document], seen: set[str]) -> Iterator[Passage]:
    for document in documents:
        for passage in passages(document.text, document.label):
            content = " ".join(passage.sentences).removeprefix(f"{document.label}: ")
            if content not in seen:
                seen.add(content)
                yield passage


def _spoken(video_id: str, texts: list[str]) -> Iterator[Segment]:
    words_before = 0
    for index, text in enumerate(texts):
        words = text.count(" ") + 1
        yield Segment(
            video_id=video_id,
            start_sec=round(words_before / WORDS_PER_SECOND, 1),
            end_sec=round((words_before + words) / WORDS_PER_SECOND, 1),
            speaker_label=f"SPEAKER_{(index // 4) % _SPEAKERS:02d}",
            text=text,
            metadata={"kind": video_id.partition(":")[0], "words": words},
        )
        words_before += words


def _grown(rows: int) -> Iterator[Segment]:
    """Round r puts the first half of every segment i before the second half of segment i + r * stride.

    Heads and tails are each without repetition and the stride shares no divisor with their number, so that no
    pair comes twice, and the joint makes the pair readable from the text: no two texts are equal.
    """
    corpus = _corpus().segments
    halves = _halves(corpus)
    count = len(halves)
    if rows - len(corpus) > count * (count - 1):
        raise ValueError(f"expected at most {len(corpus) + count * (count - 1):,} rows, got {rows:,}")
    yield from corpus
    stride = next(step for step in range(count * 382 // 1_000, count) if math.gcd(step, count) == 1)
    tails = [tail for _, _, tail, _ in halves]
    remaining = rows - len(corpus)
    for round_number in range(1, count):
        shift = round_number * stride % count
        video_id, start_sec = "", 0.0
        for index, (segment, head, _, head_words) in enumerate(halves[:remaining]):
            tail = tails[index + shift - count]
            words = head_words + tail.count(" ") + 1
            if segment.video_id != video_id:
                video_id, start_sec = segment.video_id, 0.0
                name = f"{video_id}#{round_number + 1}"
            end_sec = round(start_sec + words / WORDS_PER_SECOND, 1)
            metadata = {"kind": segment.metadata["kind"], "words": words, "recombined": True}
            yield Segment(name, start_sec, end_sec, segment.speaker_label, head + _JOINT + tail, metadata)
            start_sec = end_sec
        remaining -= count
        if remaining <= 0:
            return


def _halves(corpus: tuple[Segment, ...]) -> list[tuple[Segment, str, str, int]]:
    """(segment, first half, second half, words of the first) of segments whose two halves occur nowhere else."""
    heads: set[str] = set()
    tails: set[str] = set()
    found = []
    for segment in corpus:
        words = segment.text.split(" ")
        middle = len(words) // 2
        head, tail = " ".join(words[:middle]), " ".join(words[middle:])
        if head not in heads and tail not in tails:
            heads.add(head)
            tails.add(tail)
            found.append((segment, head, tail, middle))
    return found
