"""Reading what a sensor kept for itself. What cannot be read counts as nothing: a sensor that raises at it never ticks again."""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

Kept = TypeVar("Kept")


def read_kept(kind: type[Kept], kept: str | None) -> Kept | None:
    """The JSON as this kind, without fields that it does not know; None where it is none, as another version may have left it."""
    try:
        return TypeAdapter(kind).validate_json(kept or "")
    except ValidationError:
        return None
