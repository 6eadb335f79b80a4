"""The target table by name, and the names of everything that this project puts beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import TextClause

from bge_pipeline.database.row_key import RowKey
from bge_pipeline.database.row_text import RowText
from bge_pipeline.database.sql import Written, quote, shortened, sql

if TYPE_CHECKING:
    from bge_pipeline.settings import DatabaseSettings


@dataclass(frozen=True)
class TargetTable:
    """Names as they stand in the catalog, without quotes; `is_companion` chooses the quarantine of the companion column.

    `text_expression` is SQL over the row that takes the place of the text column, `condition` that of the rows to embed.
    Of a partition (`at`), `whole` are schema and name of the partitioned table: quarantine, journal and trigger are the whole's.
    """

    schema: str
    table: str
    id_columns: tuple[str, ...]
    text_column: str
    embedding_column: str
    is_companion: bool = False
    text_expression: str | None = None
    condition: str | None = None
    whole: tuple[str, str] | None = None

    @classmethod
    def from_settings(cls, settings: DatabaseSettings) -> TargetTable:
        """The table that the TARGET_* variables name."""
        return cls(
            schema=settings.target_schema,
            table=settings.target_table,
            id_columns=settings.id_columns,
            text_column=settings.target_text_column,
            embedding_column=settings.target_embedding_column,
            text_expression=settings.text_expression,
            condition=settings.target_where,
        )

    def at(self, schema: str, table: str) -> TargetTable:
        """The partition of that name, as a table whose rows can be read, written and indexed by themselves."""
        return replace(self, schema=schema, table=table, whole=self._whole)

    @property
    def key(self) -> RowKey:
        """What tells a row from every other."""
        return RowKey(self.id_columns)

    @property
    def row_text(self) -> RowText:
        """What is embedded of a row."""
        return RowText(self.text_column, self.text_expression, self.condition)

    def column_for(self, dimensions: int | None) -> str:
        """Name of the column beside the embedding column that holds vectors of `dimensions`."""
        return shortened(f"{self.embedding_column}_{'legacy' if dimensions is None else dimensions}")

    @property
    def exchange_column(self) -> str:
        """Name that a column bears for an instant while two columns exchange theirs."""
        return shortened(f"{self.embedding_column}_exchange")

    @property
    def quarantine_table(self) -> str:
        """Table of rows that cannot be embedded."""
        return shortened(f"{self._whole[1]}_{self.embedding_column}{self._companion}_quarantine")

    @property
    def quarantine(self) -> str:
        """The quarantine table, qualified and quoted."""
        return quote(self._whole[0], self.quarantine_table)

    @property
    def quarantine_primary_key(self) -> str:
        """Primary key of the quarantine table."""
        return shortened(f"{self._whole[1]}_{self.embedding_column}{self._companion}_quarantine_pkey")

    @property
    def earlier_quarantine_key(self) -> str:
        """Unique index that the quarantine table had before it had a primary key."""
        return shortened(f"{self._whole[1]}_{self.embedding_column}{self._companion}_quarantine_key")

    @property
    def companion(self) -> TargetTable:
        """The same table with the quarantine of its companion column: a text that one model cannot embed another may."""
        return replace(self, is_companion=True)

    @property
    def journal_table(self) -> str:
        """Table of what each phase did."""
        return shortened(f"{self._whole[1]}_{self.embedding_column}_journal")

    @property
    def journal(self) -> str:
        """The journal's table, qualified and quoted."""
        return quote(self._whole[0], self.journal_table)

    @property
    def journal_index(self) -> str:
        """Index by which the latest entries of an act are found."""
        return shortened(f"{self._whole[1]}_{self.embedding_column}_journal_latest")

    @property
    def trigger(self) -> str:
        """Trigger that empties the vector of a row whose text changes.

        Triggers fire in the order of their names' bytes, and only the last sees the text as it is stored: a tilde sorts
        after every letter, digit and underscore.
        """
        return shortened(f"~{self._whole[1]}_{self.embedding_column}_stale")

    @property
    def vector_trigger(self) -> str:
        """Trigger that notes a vector which the application writes before the text."""
        return shortened(f"~{self._whole[1]}_{self.embedding_column}_written")

    @property
    def trigger_function(self) -> str:
        """The function of both triggers, and the name that the first had before it was made to sort last."""
        return shortened(f"zz_{self._whole[1]}_{self.embedding_column}_stale")

    def pending_index(self, column: str, fingerprint: str) -> str:
        """Partial index that answers whether anything is pending in `column`."""
        return shortened(f"ix_{self.table}_{column}_{fingerprint}_pending")

    def vector_index(self, column: str, fingerprint: str, method: str) -> str:
        """ANN index on `column`; the fingerprint keeps two migrations to equal dimensions apart."""
        return shortened(f"ix_{self.table}_{column}_{fingerprint}_{method}")

    def index_aside(self, name: str, column: str) -> str:
        """Name of an index on the kept old `column` whose own name is that of the new column's index now."""
        return shortened(f"{name}_of_{column}")

    def sql(self, template: str, /, **identifiers: str | tuple[str, ...] | int) -> TextClause:
        """`sql` with the table, its columns, and the objects beside it known by the names below.

        `id` is the row's key as one value, `ids` its columns as a list, `id_text` and `id_texts` as `RowKey` has them, `text`
        the row's text, where the statement reads this table alone; with `t_` or `l_` in front where the table is `t` or `l`.
        `in_part` is the condition of the rows that are embedded, and `only_part` the same with an AND behind, or nothing.
        """
        key, row_text = self.key, self.row_text
        return sql(
            template,
            table=(self.schema, self.table),
            id=Written(key.value()),
            t_id=Written(key.value("t")),
            l_id=Written(key.value("l")),
            ids=Written(key.listed()),
            t_ids=Written(key.listed("t")),
            t_ids_descending=Written(key.descending("t")),
            id_text=Written(key.text()),
            id_texts=Written(key.texts()),
            t_ids_as_id=Written(key.renamed("id", "t")),
            l_ids_as_id=Written(key.renamed("id", "l")),
            staged_id=Written(key.under("id").value("s")),
            quarantined_id=Written(key.under("row_id").value("q")),
            quarantined_ids=Written(key.under("row_id").listed()),
            text=Written(row_text.sql),
            t_text=Written(row_text.of("t")),
            l_text=Written(row_text.of("l")),
            in_part=Written(row_text.in_part),
            only_part=Written("" if self.condition is None else f"{row_text.in_part} AND "),
            embedding=self.embedding_column,
            quarantine=(self._whole[0], self.quarantine_table),
            journal=(self._whole[0], self.journal_table),
            journal_index=self.journal_index,
            trigger=self.trigger,
            vector_trigger=self.vector_trigger,
            trigger_function=(self._whole[0], self.trigger_function),
            earlier_trigger=self.trigger_function,
            **identifiers,
        )

    @property
    def _whole(self) -> tuple[str, str]:
        return self.whole or (self.schema, self.table)

    @property
    def _companion(self) -> str:
        return "_companion" if self.is_companion else ""

    def __str__(self) -> str:
        return quote(self.schema, self.table)
