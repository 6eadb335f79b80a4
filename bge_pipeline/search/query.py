"""What a person typed, taken apart: words to look for, phrases to insist on, words to leave out. No SQL."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PHRASE = re.compile(r'(?<!\S)(-?)"([^"]*)"')
_NEGATED_WORD = re.compile(r"(?<!\S)-(?=\S)[^\s\"]+")

_MAX_CHARACTERS = 8_000
"""More than an encoder reads, and little enough for PostgreSQL to look every word up."""


@dataclass(frozen=True)
class ParsedQuery:
    """A query in the syntax of PostgreSQL's `websearch_to_tsquery`.

    Attributes:
        typed: the text as a whole, which can be encoded and stored; this is what the encoder of a dense search embeds.
        words: the text without its operators; any of these words makes a passage a candidate, and this is what the
            encoder of a hybrid search embeds.
        must: the phrases in quotes and the negated words, still in that syntax; a lexical result satisfies all of it.
            Empty for an ordinary question.
    """

    typed: str
    words: str
    must: str

    @property
    def is_blank(self) -> bool:
        """Whether there are no words to look for."""
        return not self.words.strip()


def parse_query(query: str) -> ParsedQuery:
    """Take `query` apart; no input is an error.

    Characters that PostgreSQL cannot store are replaced, and of a very long text the words at the beginning are taken.
    """
    typed = query.replace("\0", " ").encode("utf-8", "replace").decode()
    query = typed[:_MAX_CHARACTERS]
    must = [match.group() for match in _PHRASE.finditer(query)]
    words = _PHRASE.sub(lambda match: " " if match.group(1) else f" {match.group(2)} ", query)
    must += [match.group() for match in _NEGATED_WORD.finditer(words)]
    words = _NEGATED_WORD.sub(" ", words)
    return ParsedQuery(typed, words if must else query, " ".join(must))
