"""How each family of networks is run. One entry a family, and whoever adds a family adds its entry here and its test.

What an entry says, every other module asks here: nobody else looks at `model_type`, at code in a model's folder or at its
name. A family without an entry is run as `OTHER` says, by what transformers does of itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bge_pipeline.embedding.layouts import Layout
from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.layouts.packed_rows import PackedRows

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
"""A model's `config.json`."""

Mask = Callable[["Tensor", Config], Any]
"""Which token sees which, bool (b, 1, 1 or length, length), to what the network takes as its `attention_mask`."""


def declared_ending(settings: Mapping[str, Any]) -> str | None:
    """The token that the tokenizer's settings ask for by `add_eos_token`, which some folders leave to Python code of theirs."""
    end = settings.get("eos_token")
    end = end["content"] if isinstance(end, dict) else end
    return end if end and settings.get("add_eos_token") else None


@dataclass(frozen=True)
class Published:
    """What well-known models of a family were trained with, from their model cards, for folders that do not say it.

    Attributes:
        names: matches the names of these models and of no others.
        pooling: with another pooling vectors look right, have the right length and search a good deal worse
            (docs/quality-gate.md).
        query_prompt: text put before a query.
    """

    names: re.Pattern[str]
    pooling: str
    query_prompt: str = ""


@dataclass(frozen=True)
class Family:
    """Networks that are run in one way.

    Attributes:
        name: what people call the family.
        holds: whether a model with that configuration belongs to it.
        mask: what the network takes in place of a mask of its own making; None lets transformers make one, which neither
            packed rows nor OpenVINO's tracing of some networks can use.
        first_position: position of a text's first token; that many fewer tokens fit into the position embeddings.
        passes_over_padding: a padding token that a text writes out (`<pad>`) has the position before the first, and those after
            it count on as if it were not there.
        layouts: those, beside the padded one, in which several texts share a row and each sees itself alone.
        half_on_cuda: the half precision on CUDA. fp16 has more digits than bf16 and less range.
        own_code: code that comes in the models' folders and is not run, since this entry does what it does.
        configuration: what transformers must be told for the network to be run as it was trained.
        obstacle: what only sentence-transformers runs of it, in words; None where our own ways may run it.
        ending: the token that a text ends with, from the tokenizer's settings, where `tokenizer.json` adds none.
        published: its well-known models, the first that matches counts.
    """

    name: str
    holds: Callable[[Config], bool]
    mask: Mask | None = None
    first_position: Callable[[Config], int] = lambda _config: 0
    passes_over_padding: bool = False
    layouts: tuple[type[Layout], ...] = ()
    half_on_cuda: Literal["fp16", "bf16"] = "bf16"
    own_code: str | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    obstacle: str | None = None
    ending: Callable[[Mapping[str, Any]], str | None] = declared_ending
    published: tuple[Published, ...] = ()


def family_of(config: Config) -> Family:
    """The family of a model."""
    return next((family for family in FAMILIES if family.holds(config)), OTHER)


def published_as(name: str) -> Published | None:
    """What is known of a well-known model by its name, whatever its network is; None of others."""
    models = (model for family in (*FAMILIES, OTHER) for model in family.published)
    return next((model for model in models if model.names.search(name)), None)


def own_code(config: Config) -> str | None:
    """The code in a model's folder that would make its network, which is never run: it could do anything."""
    code: str | None = (config.get("auto_map") or {}).get("AutoModel")
    return code


def _of_type(*model_types: str) -> Callable[[Config], bool]:
    return lambda config: config.get("model_type") in model_types


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _ready_made(sees: Tensor, _config: Config) -> Tensor:
    """Taken as it stands, so that tracing meets no code that builds a mask."""
    return sees


def _every_layer_sees_all(sees: Tensor, _config: Config) -> dict[str, Tensor]:
    """By kinds of layers, of which there is one."""
    return {"full_attention": sees}


def _after_padding(config: Config) -> int:
    """Positions count from after the padding id."""
    return int(config.get("pad_token_id", 1)) + 1


_GTE_QWEN2_CODE = "modeling_qwen.Qwen2Model"

BERT = Family(
    name="BERT",
    holds=_of_type("bert"),
    mask=_ready_made,
    layouts=(PackedRows, EndToEnd),
    half_on_cuda="fp16",
    published=(
        Published(
            names=_named(r"bge-(small|base|large)-en\b"),
            pooling="cls",
            query_prompt="Represent this sentence for searching relevant passages: ",
        ),
        Published(names=_named(r"bge-(small|base|large)\b"), pooling="cls"),
        Published(names=_named(r"\b(all-MiniLM|e5-(small|base|large))\b"), pooling="mean"),
    ),
)

ROBERTA = Family(
    name="RoBERTa and XLM-RoBERTa",
    holds=_of_type("roberta", "xlm-roberta"),
    mask=_ready_made,
    first_position=_after_padding,
    passes_over_padding=True,
    layouts=(PackedRows, EndToEnd),
    half_on_cuda="fp16",
    published=(
        Published(names=_named(r"bge-m3\b"), pooling="cls"),
        Published(names=_named(r"\bmultilingual-e5-(base|large)\b"), pooling="mean"),
    ),
)

ROBERTA_VARIANTS = Family(
    name="variants of RoBERTa",
    holds=lambda config: "roberta" in config.get("model_type", ""),
    first_position=_after_padding,
)
"""Layers of their own, of which only the positions are known here."""

GTE_QWEN2 = Family(
    name="GTE-Qwen2",
    # A copy that transformers itself wrote has lost the code and kept what it means.
    holds=lambda config: (
        config.get("model_type") == "qwen2"
        and (own_code(config) == _GTE_QWEN2_CODE or config.get("is_causal") is False)
    ),
    mask=_every_layer_sees_all,
    own_code=_GTE_QWEN2_CODE,
    configuration={"is_causal": False},
    published=(Published(names=_named(r"\bgte-Qwen2\b"), pooling="lasttoken"),),
)
"""Qwen2, but every token sees all others, those after it included, and the states of the ending are pooled. Leaves the range
of fp16."""

DISTILBERT = Family(name="DistilBERT", holds=_of_type("distilbert"), mask=_ready_made, half_on_cuda="fp16")
"""BERT without types and without positions that could be given, so that no texts share a row."""

MPNET = Family(name="MPNet", holds=_of_type("mpnet"), first_position=_after_padding)
"""Attention of its own, with relative positions, which takes no mask of another's making."""

T5 = Family(
    name="T5", holds=_of_type("t5", "mt5", "umt5", "longt5"), obstacle="its encoder, one half of an encoder-decoder"
)

OTHER = Family(
    name="other",
    holds=lambda _config: True,
    published=(Published(names=_named(r"\ball-mpnet\b"), pooling="mean"),),
)
"""All that have no entry of their own."""

FAMILIES = (BERT, ROBERTA, ROBERTA_VARIANTS, GTE_QWEN2, DISTILBERT, MPNET, T5)
