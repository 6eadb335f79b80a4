"""What a backfill's encoder may cost: the budget of an endpoint; a model on this machine has none."""

from __future__ import annotations

from bge_pipeline.embedding.encoder import Encoder
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.phases.pace import Allowance


def allowance_of(encoder: Encoder) -> Allowance | None:
    """The encoder's budget, None where it has none."""
    return encoder.budget if isinstance(encoder, EndpointEncoder) else None
