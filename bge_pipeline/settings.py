"""Every knob of the project: read from the environment and `.env`, validated, immutable."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.old_spellings import OLD_NAMES, translate
from bge_pipeline.postgres_url import parse_url

PlainName = Annotated[str, Field(min_length=1, max_length=63)]
"""A PostgreSQL identifier as it stands in the catalog, without quotes; at most 63 bytes."""


class Settings(BaseSettings):
    """The whole configuration. The environment variable of a field is its name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # Where the data is
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL URL of the application's database; unset: the embedded PostgreSQL"
    )
    bge_pipeline_home: Path = Field(
        Path(".bge-pipeline"), description="folder for the embedded PostgreSQL, converted models and Dagster's home"
    )
    target_schema: PlainName = Field("public", description="schema of the target table")
    target_table: PlainName = Field("segments", description="the table whose embedding column changes")
    target_id_column: PlainName = Field("id", description="NOT NULL column of any type with a unique index of its own")
    target_text_column: PlainName = Field("text", description="the column whose text is embedded")
    target_embedding_column: PlainName = Field("embedding", description="the pgvector column that search reads")

    # What makes the new vectors
    embedding_provider: Literal["local", "openai"] = Field(
        "local",
        description="local: a model on this machine; openai: an OpenAI-compatible endpoint (legacy interface only)",
    )
    embedding_model: str = Field(
        "BAAI/bge-small-en-v1.5",
        min_length=1,
        description="hub name, local folder, `bundled` (all-MiniLM-L6-v2 from the extra `embedded`) or "
        "`hashing` (deterministic lexical vectors, for rehearsals)",
    )
    embedding_dimensions: int = Field(384, ge=1, le=16_000, description="dimensions the new column holds")
    embedding_device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda, cuda:1 ..."
    )
    embedding_backend: Literal["auto", "torch", "openvino"] = Field("auto", description="library that runs the model")
    embedding_precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="arithmetic of the model; auto: fp16 on CUDA, bf16 there for models outside BERT's family and on CPUs "
        "that have it, else fp32",
    )
    embedding_batch_size: int = Field(256, ge=1, description="most texts in one forward pass")
    embedding_api_url: str = Field("https://api.openai.com/v1", description="base URL for EMBEDDING_PROVIDER=openai")
    embedding_api_key: SecretStr | None = Field(None, description="key for EMBEDDING_PROVIDER=openai")

    # Search and reranking
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
        description="feedback: move the query towards its first results, without a proven gain; "
        "chat: ask an OpenAI-compatible endpoint",
    )
    query_expansion_url: str = Field("https://api.openai.com/v1", description="base URL for QUERY_EXPANSION=chat")
    query_expansion_key: SecretStr | None = Field(None, description="key for QUERY_EXPANSION=chat")
    query_expansion_model: str = Field("gpt-4o-mini", min_length=1, description="model for QUERY_EXPANSION=chat")

    # Backfill
    partition_rows: int = Field(50_000, ge=1, description="rows in one id range, that is one Dagster partition")
    backfill_batch_rows: int = Field(
        1_000, ge=1, le=100_000, description="rows that are read and encoded together, and most rows in one commit"
    )
    backfill_max_lock_ms: float = Field(
        50, gt=0, description="for how long a commit may hold the locks of its rows; commits get smaller to keep to it"
    )
    backfill_wait_for_snapshots: float = Field(
        0,
        ge=0,
        description="seconds that a backfill waits, in all, for old transactions that keep the table's pages full; 0: it goes "
        "on, more slowly",
    )
    backfill_max_attempts: int = Field(3, ge=1, description="attempts of a batch on transient errors")
    keep_old_current: Literal["auto", "off"] = Field(
        "auto",
        description="auto: while the next migration of a finished table runs, and until its retire, new rows get a vector of "
        "the old model too, where that is at hand; off: of the new model alone (one model in memory)",
    )

    backfill_triggers: Literal["fire", "skip"] = Field(
        "fire",
        description="skip: the application's triggers do not see the backfill; for a role that may set session_replication_role",
    )

    max_rows_per_second: int | None = Field(
        None, ge=1, description="most rows that a backfill writes in a second; unset: no limit"
    )
    max_replication_lag_mb: int | None = Field(
        None,
        ge=1,
        description="a backfill waits while a standby or a replication slot lags farther behind, until it has caught up; "
        "unset: it does not look",
    )
    max_search_slowdown: float | None = Field(
        None,
        gt=1,
        description="a backfill pauses between batches while the p95 of a probe search is more than so many times what it "
        "was before the backfill; unset: it does not look",
    )

    # Index and swap
    index_method: Literal["auto", "ivfflat", "hnsw"] = Field(
        "auto", description="kind of the new vector index; auto: that of the old one, IVFFlat where there was none"
    )
    index_element: Literal["auto", "vector", "halfvec"] = Field(
        "auto",
        description="what the index stores: float32 or float16; auto: as the old one, float16 above 2,000 dimensions",
    )
    index_lists: int | None = Field(
        None, ge=1, le=32_768, description="IVFFlat lists; unset: rows/1000, above 1M rows sqrt(rows)"
    )
    index_m: int | None = Field(
        None, ge=2, le=100, description="HNSW connections per layer; unset: those of the old index, else 16"
    )
    index_ef_construction: int | None = Field(
        None, ge=4, le=1_000, description="HNSW candidate list while building; unset: that of the old index, else 64"
    )
    index_max_memory_mb: int | None = Field(
        None, ge=1, description="ceiling for maintenance_work_mem in the build's session"
    )
    old_index: Literal["drop", "keep"] = Field(
        "keep",
        description="keep: the old ANN index stays until the swap, and search is as fast as before; drop: it goes in expand",
    )
    old_embedding: Literal["keep", "drop"] = Field("keep", description="what the swap does with the old vectors")
    dependents: Literal["refuse", "ignore"] = Field(
        "refuse", description="swap when views, policies or the like still depend on the old column"
    )
    swap_max_pending_rows: int = Field(
        0, ge=0, description="rows that may still be pending when the columns are exchanged"
    )
    swap_max_writer_pause_ms: int = Field(
        1_000,
        ge=10,
        le=60_000,
        description="for how long writers of the table may wait while the last rows are embedded and the columns exchanged; "
        "readers do not",
    )
    begin_next_migration: str | None = Field(
        None,
        description="consent to begin the next migration on a table whose last one is over: the name that EMBEDDING_MODEL has",
    )
    forward_after_rollback: str | None = Field(
        None,
        pattern=r"^\d{8}T\d{6}\.\d{3}Z$",
        description="consent to go forward again with a migration that was rolled back: the moment that `status` names",
    )
    lock_timeout_ms: int = Field(500, ge=1, le=60_000, description="longest wait for a strong lock, per attempt")
    lock_max_attempts: int = Field(20, ge=1, description="attempts to get a strong lock, with backoff between them")
    operator_wait_seconds: float = Field(
        0, ge=0, description="how long to wait for another operator of the table before giving up"
    )

    # Quality gate
    quality_gate: Literal["enforce", "warn", "off"] = Field(
        "enforce",
        description="enforce: the swap is refused below the bounds; warn: it goes on and says so; off: not measured",
    )
    quality_min_ndcg_retained: float | None = Field(
        None, gt=0, description="least new nDCG@20 divided by old; unset: 0.92, with the reranker 0.95"
    )
    quality_min_ann_recall: float = Field(
        0.95, gt=0, le=1, description="least recall@20 of the index against exact search"
    )
    quality_min_read_whole: float = Field(
        0.5, ge=0, le=1, description="least share of texts that the model reads to their end"
    )
    quality_sample_rows: int = Field(1_000, ge=1, le=100_000, description="rows that the gate compares")
    quality_max_queries: int = Field(
        500, ge=1, description="labelled queries that the gate asks at most; with the reranker 50"
    )
    eval_queries: Path | None = Field(
        None,
        description='labelled queries, JSON Lines of {"query": ..., "relevant": {id: grade}}; unset: label-free evidence',
    )

    benchmark_texts: int = Field(5_000, ge=1, description="texts that the benchmark encodes at each batch size")

    # Dagster
    dagster_database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL URL of the database for Dagster's own records; unset: one on the embedded PostgreSQL",
    )
    max_partition_attempts: int = Field(3, ge=1, description="runs of one partition before the sensor gives up on it")
    retry_backoff_seconds: int = Field(
        60, ge=0, description="wait before the first rerun of a failed partition; doubles"
    )

    # The vectors that are there today
    legacy_model: str = Field(
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        description="model of the old vectors; set and at hand, the quality gate asks it the labelled queries",
    )
    legacy_dimensions: int = Field(
        1_536, ge=1, description="dimensions of the old vectors, where no database can be asked"
    )

    @field_validator("database_url", "dagster_database_url")
    @classmethod
    def _is_postgres_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_url(value.get_secret_value())
            except ConfigurationError as error:
                raise ValueError(error.message) from None
        return value

    @field_validator(
        "target_schema", "target_table", "target_id_column", "target_text_column", "target_embedding_column"
    )
    @classmethod
    def _fits_an_identifier(cls, value: str) -> str:
        if len(value.encode()) > 63 or "\0" in value:
            raise ValueError("expected a PostgreSQL identifier of at most 63 bytes, without quotes")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Settings:
        columns = [self.target_id_column, self.target_text_column, self.target_embedding_column]
        if len(set(columns)) < 3:
            raise ValueError(
                "expected three different columns in TARGET_ID_COLUMN, TARGET_TEXT_COLUMN and TARGET_EMBEDDING_COLUMN, "
                f"got {', '.join(columns)}"
            )
        if self.index_element == "vector" and self.embedding_dimensions > 2_000:
            raise ValueError(
                f"EMBEDDING_DIMENSIONS: pgvector indexes at most 2,000 dimensions as vector, got {self.embedding_dimensions}; "
                "set INDEX_ELEMENT=halfvec for up to 4,000"
            )
        if self.embedding_dimensions > 4_000:
            raise ValueError(
                f"EMBEDDING_DIMENSIONS: pgvector indexes at most 4,000 dimensions, got {self.embedding_dimensions}"
            )
        if self.return_top_k > self.rerank_top_k:
            raise ValueError(f"RETURN_TOP_K ({self.return_top_k}): expected at most RERANK_TOP_K ({self.rerank_top_k})")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, `.env`; last, what old spellings in the latter two stand for."""
        sources = (init_settings, env_settings, dotenv_settings)
        variables: dict[str, str | None] = {}
        for source in (dotenv_settings, env_settings):
            if isinstance(source, EnvSettingsSource):
                variables |= source.env_vars
        taken = {name for source in sources for name in source()}
        return (*sources, InitSettingsSource(settings_cls, translate(variables, taken)))

    @property
    def skips_triggers(self) -> bool:
        """Whether a backfill leaves the application's triggers out."""
        return self.backfill_triggers == "skip"

    @property
    def home(self) -> Path:
        """The data folder as an absolute path."""
        return self.bge_pipeline_home.expanduser().resolve()


_NEARLY = 0.9
"""Share of a name's letters that a misspelling has in common with it."""

_SECRET_FIELDS = frozenset({"database_url", "dagster_database_url", "embedding_api_key", "query_expansion_key"})


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`, `overrides` winning.

    Raises:
        ConfigurationError: names each variable at fault, what it held and what it may hold.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(
            _explain(error), next_step="correct the variable in the environment or in .env"
        ) from None


def misspelled_names(env_file: Path = Path(".env")) -> dict[str, str]:
    """Names in `.env` that are nearly a setting, and the setting. Others there may be another application's."""
    known = [*(name.upper() for name in Settings.model_fields), *OLD_NAMES]
    names = (name.upper() for name in DotEnvSettingsSource(Settings, env_file=env_file).env_vars)
    unknown = [name for name in names if name not in known]
    return {name: meant for name in unknown for meant in get_close_matches(name, known, n=1, cutoff=_NEARLY)}


def names_set() -> frozenset[str]:
    """Names of the settings that the environment or `.env` sets, whether or not their values are valid."""
    return frozenset((*EnvSettingsSource(Settings)(), *DotEnvSettingsSource(Settings)()))


@lru_cache(maxsize=1)
def settings_from_env() -> Settings:
    """The process-wide settings, read once."""
    return load_settings()


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0]) if problem["loc"] else None
        message = problem["msg"].removeprefix("Value error, ")
        if field is None:
            lines.append(message)
            continue
        held = "" if field in _SECRET_FIELDS else f" (held {problem['input']!r})"
        description = Settings.model_fields[field].description if field in Settings.model_fields else None
        lines.append(f"{field.upper()}: {message}{held}" + (f". It is: {description}" if description else ""))
    return "\n".join(lines)
