"""What an endpoint would be sent and what that costs, from texts of the table and the settings alone: nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bge_pipeline.embedding.encoder import TokenizedTexts
from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.embedding.endpoint.budget import Budget
from bge_pipeline.embedding.endpoint.encoder import USUAL_TEXTS
from bge_pipeline.embedding.endpoint.token_counts import make_counter
from bge_pipeline.settings import ModelSettings


@dataclass(frozen=True)
class EndpointUse:
    """What embedding the pending rows by an endpoint means.

    Attributes:
        host: who gets the texts.
        tokens: of all pending rows, by the mean of a sample.
        is_counted: whether the sample was counted by the model's tokenizer, and not estimated from characters.
        price_per_million: as set; None where it is not.
        cost: of these tokens; None without a price.
        budget: the setting that ends a run earlier, where it would; None where it would not.
        runs: how many runs such a budget makes it.
        least_seconds: what the limits a minute leave at best; 0 without any.
    """

    host: str
    tokens: int
    is_counted: bool
    price_per_million: float | None
    cost: float | None
    budget: str | None
    runs: int
    least_seconds: float

    def __str__(self) -> str:
        how = "" if self.is_counted else " (estimated from characters; EMBEDDING_TOKENIZER has them counted)"
        price = (
            f"about {self.cost:,.2f} at {self.price_per_million:g} a million"
            if self.cost is not None
            else "EMBEDDING_PRICE_PER_MILLION says what they cost"
        )
        budget = f"; {self.budget} makes {self.runs:,} runs of it" if self.budget else ""
        return f"about {self.tokens:,} tokens{how} to {self.host}: {price}{budget}"


def count_unsent(settings: ModelSettings, texts: Sequence[str]) -> TokenizedTexts | None:
    """Passages counted as the configured endpoint's would be; None where a model on this machine is configured.

    Raises:
        ModelUnavailable: EMBEDDING_TOKENIZER cannot be found.
    """
    if settings.embedding_provider != "openai":
        return None
    prompt = settings.embedding_passage_prompt or ""
    return make_counter(settings).count([prompt + text for text in texts], settings.embedding_text_tokens)


def endpoint_use(settings: ModelSettings, mean_tokens: float, pending: int) -> EndpointUse | None:
    """What embedding so many rows means, at so many tokens a row; None where a model on this machine is configured."""
    if settings.embedding_provider != "openai":
        return None
    tokens = round(mean_tokens * pending)
    budget = Budget.from_settings(settings)
    price = settings.embedding_price_per_million
    runs = -(-tokens // budget.most_tokens) if budget.most_tokens else 1
    minutes = [0.0]
    if settings.embedding_tokens_per_minute:
        minutes.append(tokens / settings.embedding_tokens_per_minute)
    if settings.embedding_requests_per_minute:
        requests = max(
            pending / (settings.embedding_batch_size or USUAL_TEXTS), tokens / settings.embedding_request_tokens
        )
        minutes.append(requests / settings.embedding_requests_per_minute)
    return EndpointUse(
        host=Address.from_settings(settings).host,
        tokens=tokens,
        is_counted=settings.embedding_tokenizer is not None,
        price_per_million=price,
        cost=tokens / 1_000_000 * price if price is not None else None,
        budget=budget.words if runs > 1 else None,
        runs=runs,
        least_seconds=max(minutes) * 60,
    )
