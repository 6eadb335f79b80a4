"""Templates of columns, as pgai's formatting has them, as SQL."""

from __future__ import annotations

from string import Template


def template_expression(template: str) -> str:
    """The SQL of a template such as `$title: $chunk`: columns by name, NULL as nothing; NULL where all of them are.

    Raises:
        ValueError: the template has no column in it, or a `$` that is neither `$name`, `${name}` nor `$$`.
    """
    parts: list[str] = []
    names: list[str] = []
    end = 0
    for found in Template.pattern.finditer(template):
        name = found["named"] or found["braced"]
        if found["invalid"] is not None:
            raise ValueError(f"expected $name, ${{name}} or $$, got {template[found.start() : found.start() + 12]!r}")
        parts.append(_constant(template[end : found.start()] + ("$" if name is None else "")))
        end = found.end()
        if name is not None:
            names.append(f'"{name}"')
            parts.append(f"coalesce({names[-1]}::text, '')")
    if not names:
        raise ValueError(f"expected at least one column as $name, got {template!r}")
    parts.append(_constant(template[end:]))
    whole = " || ".join(part for part in parts if part != "''")
    return f"CASE WHEN num_nonnulls({', '.join(names)}) > 0 THEN {whole} END"


def _constant(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
