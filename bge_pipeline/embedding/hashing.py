"""An encoder without a model: hashed words through a fixed random projection. For rehearsals, tests and stand-ins."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.space import EmbeddingSpace

_ALGORITHM_VERSION = 1
"""Counts up whenever the same text would get another vector."""

_BUCKETS = 1 << 15
_MAX_WORDS = 8_192
_TEXTS_PER_BLOCK = 4_096
_CACHED_WORDS = 500_000
_NO_BUCKET = -1

_WORD = re.compile(r"[^\W_]+")

_STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are as at be because been before being below between both
    but by can could did do does doing down during each else ever few for from further get gets got had has have having
    he her here hers herself him himself his how however i if in into is it its itself just let ll me might more most
    must my myself no nor not of off on once only onto or other our ours ourselves out over own per rather re s same
    shall she should so some such t than that the their theirs them themselves then there these they this those through
    thus to too under until up upon us ve very was we were what when where whether which while who whom whose why will
    with within without would yet you your yours yourself yourselves
    """.split()
)

_SUFFIXES = (
    ("ization", "iz"),
    ("ational", "at"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("ations", "at"),
    ("ation", "at"),
    ("ators", "at"),
    ("ator", "at"),
    ("ments", "ment"),
    ("izing", "iz"),
    ("ings", ""),
    ("ing", ""),
    ("ies", "y"),
    ("ied", "y"),
    ("edly", ""),
    ("sses", "ss"),
    ("ers", "er"),
    ("ed", ""),
    ("ly", ""),
    ("es", ""),
    ("e", ""),
)


class HashingEncoder:
    """Deterministic vectors that carry lexical meaning: texts that share words are near each other.

    Words are lower-cased, stripped of English endings and stop words, hashed to 32,768 buckets, weighted by
    1 + ln(occurrences), and summed as random rows of +1 and -1 (Achlioptas, "Database-friendly random projections",
    2003), so that cosines come close to those of the bags of words. The same text gives the same bytes in every
    process. Memory: 32,768 bytes per dimension.

    Args:
        dimensions: length of a vector.
        seed: chooses the projection; vectors of two seeds cannot be compared.
        name: model name shown in the embedding space.
    """

    device = "cpu"
    concurrent_calls = 1

    def __init__(self, dimensions: int = 384, seed: int = 0, *, name: str = "hashing") -> None:
        self.space = EmbeddingSpace(
            model=name,
            revision=f"hashing-v{_ALGORITHM_VERSION}-seed{seed}",
            dimensions=dimensions,
            pooling="sum",
            max_tokens=_MAX_WORDS,
        )
        self._seed = seed
        self._bucket_of = _WordBuckets()

    @classmethod
    def of_space(cls, space: EmbeddingSpace) -> HashingEncoder:
        """The encoder that made the vectors of a recorded space, if its `revision` is of today's algorithm."""
        return cls(space.dimensions, int(space.revision.rpartition("seed")[2]), name=space.model)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Hash the words of each text; words beyond the 8,192nd are cut off."""
        bucket_of = self._bucket_of.__getitem__
        buckets: list[int] = []
        ends = np.empty(len(texts), np.int64)
        truncated = np.zeros(len(texts), np.bool_)
        for position, text in enumerate(texts):
            words = _WORD.findall(text.lower())
            if len(words) > _MAX_WORDS:
                truncated[position] = True
                del words[_MAX_WORDS:]
            buckets.extend(map(bucket_of, words))
            ends[position] = len(buckets)
        self._bucket_of.forget_if_large()
        return _without_stop_words(texts, np.array(buckets, np.int32), ends, truncated)

    def tokenize_queries(self, texts: Sequence[str]) -> TokenizedTexts:
        """The same as `tokenize`: words mean the same in a query and in a passage."""
        return self.tokenize(texts)

    def encode(self, tokens: TokenizedTexts, *, batch_size: int | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Vectors float32 (n, dimensions) of unit length; `batch_size` makes no difference here."""
        buckets: NDArray[np.int32] = tokens.payload
        ends = np.concatenate(([0], np.cumsum(tokens.token_counts, dtype=np.int64)))
        vectors = np.empty((len(tokens), self.space.dimensions), np.float32)
        for first in range(0, len(tokens), _TEXTS_PER_BLOCK):
            last = min(first + _TEXTS_PER_BLOCK, len(tokens))
            block_ends = ends[first : last + 1]
            vectors[first:last] = self._project(buckets[block_ends[0] : block_ends[-1]], block_ends - block_ends[0])
        return vectors

    def close(self) -> None:
        """Nothing to release."""

    def _project(self, buckets: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        from scipy.sparse import csr_matrix

        is_used = np.zeros(_BUCKETS, np.bool_)
        is_used[buckets] = True
        columns = (np.cumsum(is_used, dtype=np.int32) - 1)[buckets]
        counts = csr_matrix(
            (np.ones(len(buckets), np.float32), columns, offsets), shape=(len(offsets) - 1, int(is_used.sum()))
        )
        counts.sum_duplicates()
        counts.data = 1 + np.log(counts.data)
        vectors: NDArray[np.float32] = counts @ self._signs[is_used].astype(np.float32)
        squared = np.einsum("ij,ij->i", vectors, vectors)
        vectors[squared == 0, 0] = 1
        squared[squared == 0] = 1
        vectors /= np.sqrt(squared)[:, None]
        return vectors

    @cached_property
    def _signs(self) -> NDArray[np.int8]:
        # random_raw is the part of NumPy's generators whose stream is promised never to change.
        needed = _BUCKETS * self.space.dimensions
        words = np.random.PCG64(self._seed).random_raw(-(-needed // 64)).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=needed).view(np.int8)
        return (2 * bits - 1).reshape(_BUCKETS, self.space.dimensions)


class _WordBuckets(dict[str, int]):
    """Bucket of each word seen so far, so that a word is stemmed and hashed once."""

    def __missing__(self, word: str) -> int:
        bucket = _NO_BUCKET if word in _STOP_WORDS else zlib.crc32(_stem(word).encode()) % _BUCKETS
        self[word] = bucket
        return bucket

    def forget_if_large(self) -> None:
        if len(self) > _CACHED_WORDS:
            self.clear()


def _stem(word: str) -> str:
    """The word without its commonest English endings; at least three letters stay."""
    if word.endswith("s") and not word.endswith(("ss", "us", "is", "es")) and len(word) > 3:
        word = word[:-1]
    for suffix, replacement in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            stem = word[: len(word) - len(suffix)] + replacement
            if suffix in ("ing", "ings", "ed") and stem[-1] == stem[-2] and stem[-1] not in "lsz":
                return stem[:-1]
            return stem
    return word


def _without_stop_words(
    texts: Sequence[str], buckets: NDArray[np.int32], ends: NDArray[np.int64], truncated: NDArray[np.bool_]
) -> TokenizedTexts:
    """Drop the stop words; a text left with nothing stands for itself as a single word."""
    usable = buckets != _NO_BUCKET
    usable_before = np.concatenate(([0], np.cumsum(usable, dtype=np.int64)))
    counts = np.diff(usable_before[np.concatenate(([0], ends))]).astype(np.int32)
    buckets = buckets[usable]
    (wordless,) = np.nonzero(counts == 0)
    if len(wordless):
        stand_ins = [zlib.crc32(texts[position].strip().lower().encode()) % _BUCKETS for position in wordless.tolist()]
        buckets = np.insert(buckets, usable_before[ends[wordless]], stand_ins).astype(np.int32)
        counts[wordless] = 1
    return TokenizedTexts(payload=buckets, token_counts=counts, truncated=truncated)
