"""Where the data is: the database and the target table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from bge_pipeline.settings.column_list import split_columns
from bge_pipeline.settings.group import PlainName, must_be_postgres_url
from bge_pipeline.settings.home import HomeSettings
from bge_pipeline.settings.text_template import template_expression


class DatabaseSettings(HomeSettings):
    """The database and the target table."""

    database_url: SecretStr | None = Field(
        None, description="PostgreSQL URL of the application's database; unset: the embedded PostgreSQL"
    )
    target_schema: PlainName = Field("public", description="schema of the target table")
    target_table: PlainName = Field("segments", description="the table whose embedding column changes")
    target_id_column: str = Field(
        "id",
        description="NOT NULL column of any type with a unique index of its own; or several that have one together, in the "
        "order of that index, e.g. tenant_id,doc_id",
    )
    target_text_column: PlainName = Field("text", description="the column whose text is embedded")
    target_text: str | None = Field(
        None,
        min_length=1,
        description="SQL expression over the row that is embedded in place of TARGET_TEXT_COLUMN, e.g. title || E'\\n' || body",
    )
    target_text_template: str | None = Field(
        None, description="the same as a template of columns, e.g. $title: $chunk; NULL counts as nothing"
    )
    target_where: str | None = Field(
        None,
        min_length=1,
        description="SQL condition of the rows that are embedded, e.g. tenant_id = 7; unset: all rows",
    )
    target_embedding_column: PlainName = Field("embedding", description="the pgvector column that search reads")

    target_vector_type: Literal["vector", "halfvec"] = Field(
        "vector", description="type of the new column: float32, or float16 in half the space"
    )

    session_priority: Literal["idle", "normal"] = Field(
        "idle",
        description="idle: on a server of this machine and this user, reached over its socket, the sessions that read, write and "
        "build indexes take only the processor time that nobody else wants; normal: as much as everybody",
    )

    @field_validator("target_schema", "target_table", "target_text_column", "target_embedding_column")
    @classmethod
    def _fits_an_identifier(cls, value: str) -> str:
        if len(value.encode()) > 63 or "\0" in value:
            raise ValueError("expected a PostgreSQL identifier of at most 63 bytes, without quotes")
        return value

    @field_validator("target_id_column")
    @classmethod
    def _is_list_of_columns(cls, value: str) -> str:
        split_columns(value)
        return value

    @field_validator("target_text_template")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value is not None:
            template_expression(value)
        return value

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The columns that tell a row from every other."""
        return split_columns(self.target_id_column)

    @property
    def text_expression(self) -> str | None:
        """SQL of the text of a row where it is no plain column."""
        return template_expression(self.target_text_template) if self.target_text_template else self.target_text

    _is_postgres_url = field_validator("database_url")(must_be_postgres_url)
