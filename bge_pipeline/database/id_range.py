"""A range of ids: what one partition of a backfill holds, as SQL and as a partition key."""

from __future__ import annotations

from dataclasses import dataclass

from bge_pipeline.database.composite_ids import kind_of, parse_composite
from bge_pipeline.database.ids import INTEGERS, OTHERS, UUIDS, Id, IdKind, id_as_text
from bge_pipeline.errors import BgePipelineError


@dataclass(frozen=True)
class IdRange:
    """`[lower, upper)`, or `(lower, upper]` where the kind has it so; without a lower end where `lower` is None.

    An upper bound that has no successor is included, since nothing could stand above it.
    """

    lower: Id | None
    upper: Id
    kind: IdKind

    def key(self, number: int, digits: int = 5) -> str:
        """The range as the partition key of that number. Keys of so many digits sort by their numbers, whatever the ids are."""
        return f"{number:0{digits}d}{self.kind.key(self.lower, self.upper)}"

    @classmethod
    def from_key(cls, key: str) -> IdRange:
        """The range that a partition key names.

        Raises:
            BgePipelineError: the key is not one of ours.
        """
        for kind in (INTEGERS, UUIDS, OTHERS):
            bounds = kind.parse(key)
            if bounds is not None:
                return cls(*bounds, kind)
        together = parse_composite(key)
        if together is not None:
            return cls(*together, kind_of([("text", "=")] * len(together[1])))
        raise BgePipelineError(f"expected a partition key `<number>_<first id>-<last id>`, got {key!r}")

    def require_columns(self, kind: IdKind) -> None:
        """Refuse a range of another key than the table's.

        Raises:
            BgePipelineError: it has another number of columns.
        """
        if len(self.kind.parts) != len(kind.parts):
            raise BgePipelineError(
                f"expected a range of a key of {len(kind.parts)} columns, as TARGET_ID_COLUMN names, got {self}",
                state="nothing was written",
                next_step="materialize schema_with_384_column, which cuts the partitions anew",
            )

    @property
    def condition(self) -> str:
        """The range as SQL about `{id}`, for `values`."""
        above = (
            "" if self.lower is None else "{id} > :lower AND " if self.kind.includes_upper else "{id} >= :lower AND "
        )
        return above + "{id} " + ("<" if self.kind.has_successor(self.upper) else "<=") + " :upper"

    @property
    def values(self) -> dict[str, Id]:
        """The values of `condition`."""
        return {"upper": self.upper} | ({} if self.lower is None else {"lower": self.lower})

    def __str__(self) -> str:
        lower, upper = ("" if bound is None else id_as_text(bound) for bound in (self.lower, self.upper))
        return f"({lower}, {upper}]" if self.kind.includes_upper else f"[{lower}, {upper})"
