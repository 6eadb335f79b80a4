"""What the groups of settings have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.postgres_url import parse_url

PlainName = Annotated[str, Field(min_length=1, max_length=63)]
"""A PostgreSQL identifier as it stands in the catalog, without quotes; at most 63 bytes."""


QualifiedColumn = Annotated[str, Field(pattern=r"^[^.]{1,63}\.[^.]{1,63}\.[^.]{1,63}$")]
"""A column as schema.table.column, plain names that have no dot in them."""


class Group(BaseModel):
    """A group of settings: a field of it is an environment variable of that name in capitals."""

    model_config = ConfigDict(frozen=True)


def must_be_postgres_url(value: SecretStr | None) -> SecretStr | None:
    """The value, if it is unset or a PostgreSQL URL."""
    if value is not None:
        try:
            parse_url(value.get_secret_value())
        except ConfigurationError as error:
            raise ValueError(error.message) from None
    return value


def must_fit_a_header(value: SecretStr | None) -> SecretStr | None:
    """A key without the line break that files end with, if it is unset or can be sent: libraries repeat what cannot."""
    if value is None:
        return None
    key = value.get_secret_value().strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise ValueError("expected printable ASCII characters without blanks")
    return SecretStr(key)
