"""Lists of columns as one variable holds them: plain names with commas between, quoted as SQL does where a name needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAME = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^",\s](?:[^,]*[^,\s])?))\s*,')
_MAX_IDENTIFIER_BYTES = 63


def split_columns(value: str) -> tuple[str, ...]:
    """The names in `tenant_id, "Doc, Id"`: a comma or a space at an end is part of a name in quotes, a quote is doubled there.

    Raises:
        ValueError: there is no name, one that no column can have, or one twice.
    """
    names: list[str] = []
    rest = f"{value},"
    while rest:
        found = _NAME.match(rest)
        if found is None:
            raise ValueError(f"expected names of columns with commas between, got {value!r}")
        quoted = found["quoted"]
        names.append(found["plain"] if quoted is None else quoted.replace('""', '"'))
        rest = rest[found.end() :]
    wrong = [name for name in names if len(name.encode()) > _MAX_IDENTIFIER_BYTES or "\0" in name]
    if wrong:
        raise ValueError(f"expected names of at most {_MAX_IDENTIFIER_BYTES} bytes, got {value!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected every column once, got {value!r}")
    return tuple(names)


def join_columns(names: Sequence[str]) -> str:
    """The value that `split_columns` reads these names from."""
    return ",".join(name if _is_plain(name) else '"' + name.replace('"', '""') + '"' for name in names)


def _is_plain(name: str) -> bool:
    return "," not in name and not name.startswith('"') and name == name.strip()
