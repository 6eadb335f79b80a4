"""A statement as a person may be shown it: one short line without comments and without literals, which may be secret."""

from __future__ import annotations

import re

LONGEST = 80
"""Characters of a statement that are shown."""

_PARTS = re.compile(
    r"""
    (?P<name>"(?:[^"]|"")*"?)                                  # a quoted identifier, which is no literal
  | (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
  | (?P<dollar>\$(?P<tag>[^\W\d]\w*)?\$.*?(?:\$(?P=tag)\$|\Z)|\$\$.*?(?:\$\$|\Z))
  | (?P<escaped>\b[eE]'(?:[^'\\]|''|\\.)*(?:'|\Z))
  | (?P<text>(?:\b(?:[nNbBxX]|[uU]&))?'(?:[^']|'')*(?:'|\Z))
  | (?P<number>(?<![\w$.])(?:\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|0[xXoObB][\da-fA-F_]+)(?![\w]))
    """,
    re.VERBOSE | re.DOTALL,
)


def shown_statement(statement: str, longest: int = LONGEST) -> str:
    """The statement in one line of at most `longest` characters, `?` where a literal stands.

    What the server cut off in the middle of a literal counts as one. Where a backslash makes it doubtful at which quote a
    literal ends, the rest of the statement is left out.
    """
    pieces: list[str] = []
    last = 0
    for part in _PARTS.finditer(statement):
        pieces.append(statement[last : part.start()])
        last = part.end()
        if part["name"]:
            pieces.append(part["name"])
        elif part["comment"]:
            pieces.append(" ")
        else:
            pieces.append("?")
        if part["text"] and "\\'" in part["text"]:
            # With standard_conforming_strings off the literal goes on behind this quote.
            last = len(statement)
            pieces.append(" ...")
            break
    pieces.append(statement[last:])
    line = " ".join("".join(pieces).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
