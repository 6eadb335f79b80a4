"""The query path: candidates, reranking, expansion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from bge_pipeline.settings.group import Group, must_fit_a_header
from bge_pipeline.settings.web_url import must_be_web_url


class SearchSettings(Group):
    """The query path."""

    enable_reranker: bool = Field(False, description="rerank candidates with a cross-encoder")
    reranker_model: str = Field("BAAI/bge-reranker-large", min_length=1, description="hub name or local folder")
    rerank: Literal["always", "auto"] = Field(
        "always", description="with ENABLE_RERANKER; auto: only searches whose first stage is unsure of its order"
    )
    rerank_top_k: int = Field(200, ge=1, description="candidates fetched from pgvector for the reranker")
    return_top_k: int = Field(20, ge=1, description="results returned")
    rerank_batch_size: int = Field(64, ge=1, description="query-document pairs in one forward pass")
    search_probes: int | None = Field(
        None, ge=1, le=32_768, description="IVFFlat lists that a search looks into; unset: 2 sqrt(lists)"
    )
    search_ef_search: int | None = Field(
        None, ge=1, le=1_000, description="HNSW candidates that a search keeps; unset: rows wanted, at least 100"
    )
    search_language: str = Field(
        "english",
        pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$",
        description="PostgreSQL text search configuration of lexical and hybrid search",
    )
    query_expansion: Literal["off", "feedback", "chat"] = Field(
        "off",
        description="feedback: move the query towards its first results (no gain where it was measured); "
        "chat: ask an OpenAI-compatible endpoint",
    )
    query_expansion_url: str = Field("https://api.openai.com/v1", description="base URL for QUERY_EXPANSION=chat")
    query_expansion_key: SecretStr | None = Field(None, description="key for QUERY_EXPANSION=chat")
    query_expansion_model: str = Field("gpt-4o-mini", min_length=1, description="model for QUERY_EXPANSION=chat")

    _is_url_of_expansion = field_validator("query_expansion_url")(
        must_be_web_url("QUERY_EXPANSION_URL", key="QUERY_EXPANSION_KEY")
    )
    _is_key_of_expansion = field_validator("query_expansion_key")(must_fit_a_header)
