"""EMBEDDING_PROVIDER=openai: where the endpoint is, what may be asked of it at once, and what it may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from bge_pipeline.settings.group import Group, must_fit_a_header
from bge_pipeline.settings.web_url import must_be_web_url


class EndpointSettings(Group):
    """An OpenAI-compatible embeddings endpoint, its limits and its price."""

    embedding_api_url: str = Field("https://api.openai.com/v1", description="base URL for EMBEDDING_PROVIDER=openai")
    embedding_api_key: SecretStr | None = Field(None, description="key for EMBEDDING_PROVIDER=openai")
    embedding_served_model: str | None = Field(
        None,
        min_length=1,
        description="name of the model in the endpoint's answers, where an alias is asked for; another name stops a run",
    )
    embedding_ask_dimensions: Literal["auto", "always", "never"] = Field(
        "auto",
        description="whether an endpoint is sent EMBEDDING_DIMENSIONS; auto: only for models named text-embedding-3, as others "
        "may refuse it",
    )
    embedding_text_tokens: int = Field(
        8_191, ge=8, description="most tokens of one text that the endpoint's model reads; the rest is cut off here"
    )
    embedding_tokenizer: str | None = Field(
        None,
        min_length=1,
        description="hub name or folder of the endpoint's tokenizer (tokenizer.json), so that tokens are counted and not "
        "estimated from characters",
    )
    embedding_concurrency: int = Field(4, ge=1, le=256, description="requests that an endpoint gets at once")
    embedding_request_tokens: int = Field(50_000, ge=8, description="most tokens of the texts in one request")
    embedding_timeout_seconds: float = Field(60, gt=0, description="longest wait for an endpoint's answer")
    embedding_max_attempts: int = Field(
        6, ge=1, description="attempts of one request on rate limits, server errors and lost connections"
    )
    embedding_requests_per_minute: int | None = Field(
        None, ge=1, description="most requests that one process sends in a minute; unset: no limit"
    )
    embedding_tokens_per_minute: int | None = Field(
        None, ge=1, description="most tokens that one process sends in a minute; unset: no limit"
    )
    embedding_price_per_million: float | None = Field(
        None, ge=0, description="price of a million tokens, in whatever currency; shown by plan"
    )
    embedding_max_tokens: int | None = Field(
        None, ge=1, description="tokens after which a run ends its backfill, to be resumed by the next; unset: no limit"
    )
    embedding_max_cost: float | None = Field(
        None, gt=0, description="the same in money, by EMBEDDING_PRICE_PER_MILLION; unset: no limit"
    )

    _is_url_of_endpoint = field_validator("embedding_api_url")(
        must_be_web_url("EMBEDDING_API_URL", key="EMBEDDING_API_KEY")
    )
    _is_key_of_endpoint = field_validator("embedding_api_key")(must_fit_a_header)
