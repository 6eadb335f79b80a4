"""Whether a model pools as it was trained: held against the other poolings of its own network, on known items of the table.

A model that is set up wrongly from the start makes the same wrong vectors again, and beside a weak old model it is no worse
than before; but another pooling of the very same states is then clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bge_pipeline.quality.known_items import known_item_search
from bge_pipeline.quality.label_free import Vectors
from bge_pipeline.quality.metrics import NORMAL_95

POOLING_WORDS = 8
"""Words out of each text: so few that even the right pooling does not find every text, and poolings differ."""


@dataclass(frozen=True)
class PoolingComparison:
    """The configured pooling against the rival that did best.

    Attributes:
        configured, rival: names of the two poolings.
        mrr, rival_mrr: mean reciprocal rank of the known items with each.
        advantage: mean of the one minus the other, text by text; below 0 where the rival is better.
        standard_error: of `advantage`, over the texts.
        texts: how many were searched for, among as many.
    """

    configured: str
    rival: str
    mrr: float
    rival_mrr: float
    advantage: float
    standard_error: float
    texts: int

    @property
    def highest_advantage(self) -> float:
        """The upper end of the 95% interval of `advantage`."""
        return self.advantage + NORMAL_95 * self.standard_error

    def as_metadata(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """The result in a sentence."""
        return (
            f"{self.configured} pooling finds {self.texts:,} texts by {POOLING_WORDS} words of each with MRR {self.mrr:.3f}, "
            f"{self.rival} pooling of the same network with {self.rival_mrr:.3f} (the one minus the other "
            f"{self.advantage:+.3f}, 95% interval up to {self.highest_advantage:+.3f})"
        )


def compare_poolings(
    configured: str, queries: Mapping[str, Vectors], rows: Mapping[str, Vectors]
) -> PoolingComparison | None:
    """Search for each text by words out of it with every pooling; None with fewer than two texts.

    Args:
        configured: the pooling that the model is set up with.
        queries: by pooling (n, d), vectors of `POOLING_WORDS` words out of n texts, made as queries are.
        rows: by pooling (n, d), vectors of the n texts.
    """
    count = len(rows[configured])
    if count < 2:
        return None
    ranks = {
        pooling: np.array(known_item_search(queries[pooling], rows[pooling], range(count)).reciprocal_ranks)
        for pooling in rows
    }
    rival = max(
        (pooling for pooling in ranks if pooling != configured), key=lambda pooling: float(ranks[pooling].mean())
    )
    differences = ranks[configured] - ranks[rival]
    return PoolingComparison(
        configured=configured,
        rival=rival,
        mrr=float(ranks[configured].mean()),
        rival_mrr=float(ranks[rival].mean()),
        advantage=float(differences.mean()),
        standard_error=float(differences.std(ddof=1) / np.sqrt(count)),
        texts=count,
    )
