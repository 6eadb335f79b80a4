"""What makes the vectors: the model and how it is run, and the model of the old ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bge_pipeline.settings.endpoint import EndpointSettings
from bge_pipeline.settings.home import HomeSettings


class ModelSettings(EndpointSettings, HomeSettings):
    """What makes the vectors, and what made the old ones."""

    embedding_provider: Literal["local", "openai"] = Field(
        "local",
        description="local: a model on this machine; openai: an OpenAI-compatible endpoint, see EMBEDDING_API_URL",
    )
    embedding_model: str = Field(
        "BAAI/bge-small-en-v1.5",
        min_length=1,
        description="hub name, local folder, `bundled` (all-MiniLM-L6-v2, which comes with the package), "
        "`hashing` (deterministic lexical vectors, for rehearsals) or an endpoint's name for it",
    )
    embedding_dimensions: int = Field(384, ge=1, le=16_000, description="dimensions the new column holds")
    embedding_truncate: bool = Field(
        False,
        description="cut vectors to EMBEDDING_DIMENSIONS though the model's files do not say that they are made for it",
    )
    embedding_query_prompt: str | None = Field(
        None,
        description="text put before a search query; what the model's files say when not set, and nothing for an endpoint",
    )
    embedding_passage_prompt: str | None = Field(
        None,
        description="text put before a passage; what the model's files say when not set, and nothing for an endpoint",
    )
    trust_remote_code: str | None = Field(
        None,
        description="run code that comes with EMBEDDING_MODEL, of this commit and of no other; in a folder that is no "
        "snapshot of the hub, `sha256:` and the digest that the refusal names",
    )
    allow_pickled_weights: bool = Field(
        False,
        description="load models whose weights are in pickle's format alone, by PyTorch's restricted loader",
    )
    embedding_device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda, cuda:1 ..."
    )
    embedding_backend: Literal["auto", "torch", "openvino"] = Field("auto", description="library that runs the model")
    embedding_precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="arithmetic of the model; auto: fp16 on CUDA, bf16 there for models outside BERT's family and on CPUs "
        "that are quicker in it (AMX, or AMD's with AVX512_BF16), else fp32",
    )
    embedding_batch_size: int | None = Field(
        None,
        ge=1,
        description="most texts in one forward pass, as many as the device's memory allows when not set; in one request to an "
        "endpoint 256",
    )
    legacy_model: str = Field(
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        description="model of the old vectors; set and at hand, the quality gate asks it the labelled queries",
    )
    legacy_dimensions: int = Field(
        1_536, ge=1, description="dimensions of the old vectors, where no database can be asked"
    )
