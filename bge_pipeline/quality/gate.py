"""The quality gate's decision: measurements against bounds. Pure; who measures and who swaps is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bge_pipeline.quality.bounds import SERVER_RECALL_TOLERANCE, GateBounds
from bge_pipeline.quality.known_items import KnownItemSearch
from bge_pipeline.quality.label_free import NeighbourAgreement, StoredVectorAgreement
from bge_pipeline.quality.poolings import PoolingComparison
from bge_pipeline.quality.server_search import ServerSearch

GateMode = Literal["enforce", "warn", "off"]
_MORE_RECALL = "raise SEARCH_PROBES or SEARCH_EF_SEARCH, or build the index with more lists or a larger ef_construction"


@dataclass(frozen=True)
class QualityMeasurements:
    """What is known about the new vectors; None is what was not measured.

    `ndcg_basis` says in words over which queries nDCG was measured, `ndcg_reranked` whether a reranker took part.
    """

    ndcg_old: float | None = None
    ndcg_new: float | None = None
    ndcg_basis: str | None = None
    ndcg_reranked: bool | None = None
    ann_recall: float | None = None
    server_search: ServerSearch | None = None
    neighbours: NeighbourAgreement | None = None
    known_items: KnownItemSearch | None = None
    stored_vectors: StoredVectorAgreement | None = None
    read_whole: float | None = None
    poolings: PoolingComparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """The measurements as plain JSON values, for the journal; of known items the means."""
        return asdict(self) | {"known_items": self.known_items.as_metadata() if self.known_items else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QualityMeasurements:
        """What `as_dict` of the same version described."""
        kinds: dict[str, Callable[..., Any]] = {
            "server_search": ServerSearch,
            "neighbours": NeighbourAgreement,
            "known_items": KnownItemSearch,
            "stored_vectors": StoredVectorAgreement,
            "poolings": PoolingComparison,
        }
        return cls(
            **{
                name: kinds[name](**value) if name in kinds and value is not None else value
                for name, value in values.items()
            }
        )

    def culprit(self, bounds: GateBounds) -> str:
        """Which of old and new vectors a comparison of the two more likely speaks against, by what needs no comparison."""
        if self.poolings is not None and self.poolings.highest_advantage < bounds.pooling_advantage:
            return "the new model is set up with another pooling than it was trained for, so that the new vectors are the culprit"
        own = [
            self.known_items.highest_success >= bounds.known_item_success if self.known_items else None,
            self.stored_vectors.matching_share >= bounds.stored_vectors_matching if self.stored_vectors else None,
        ]
        if False in own:
            return "the new vectors fail a check of their own, so that they are the likelier culprit"
        if own == [True, True]:
            return (
                "the new vectors find their own rows and are what the model makes of these texts, so that the old vectors, or "
                "a model that is set up wrongly from the start (pooling, prompts), are the likelier culprit"
            )
        return "which of old and new vectors is at fault was not measured"


@dataclass(frozen=True)
class GateCheck:
    """One measurement and its bound.

    Attributes:
        name: of the bound, as in `GateBounds`.
        value: what was measured; None if it was not, and then the check does not fail.
        bound: the least value that passes.
        passed: whether the value reaches the bound.
        explanation: the measurement in words, and what a failure points to.
    """

    name: str
    value: float | None
    bound: float
    passed: bool
    explanation: str


@dataclass(frozen=True)
class GateResult:
    """The decision.

    Attributes:
        passed: whether every check that could be made passed.
        mode: `enforce` stops the swap on failure, `warn` reports it, `off` does not look.
        checks: all of them, in the order of `GateBounds`; none with mode `off`.
    """

    passed: bool
    mode: GateMode
    checks: tuple[GateCheck, ...]

    @property
    def blocks(self) -> bool:
        """Whether the swap must not go on."""
        return self.mode == "enforce" and not self.passed

    @property
    def failures(self) -> tuple[GateCheck, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def as_metadata(self) -> dict[str, Any]:
        """The decision as plain JSON values."""
        return {"passed": self.passed, "mode": self.mode, "checks": [asdict(check) for check in self.checks]}

    def summary(self) -> str:
        """The decision in words: one line, and one for each failure."""
        if self.mode == "off":
            return "quality gate: off, nothing was checked"
        measured = [check for check in self.checks if check.value is not None]
        verdict = f"quality gate ({self.mode}): {len(measured) - len(self.failures)} of {len(measured)} checks passed"
        return "\n".join([verdict, *(f"- {check.name}: {check.explanation}" for check in self.failures)])


def decide(measured: QualityMeasurements, bounds: GateBounds, mode: GateMode = "enforce") -> GateResult:
    """Hold the measurements against the bounds."""
    checks = () if mode == "off" else tuple(_checks(measured, bounds))
    return GateResult(passed=all(check.passed for check in checks), mode=mode, checks=checks)


def _checks(measured: QualityMeasurements, bounds: GateBounds) -> Iterator[GateCheck]:
    retained = _retained(measured.ndcg_old, measured.ndcg_new)
    yield _check(
        "ndcg_retained",
        retained,
        bounds.ndcg_retained,
        f"nDCG@20 went from {_number(measured.ndcg_old)} to {_number(measured.ndcg_new)} over {measured.ndcg_basis}",
        f"search with the new model is worse on the labelled queries; {measured.culprit(bounds)}",
    )
    yield _check(
        "ann_recall",
        measured.ann_recall,
        bounds.ann_recall,
        "share of the exact nearest neighbours that the index finds",
        _MORE_RECALL,
    )
    plain = measured.server_search
    before = plain.recall_before if plain is not None else None
    yield _check(
        "server_recall",
        plain.recall if plain else None,
        bounds.server_recall if before is None else min(bounds.server_recall, before - SERVER_RECALL_TOLERANCE),
        plain.summary() if plain else None,
        f"for sessions to come: {plain.statement}; which bge-pipeline migrate --set-search-effort runs. An "
        "application that sets it for itself, or searches through Retriever, wants SERVER_SEARCH_EFFORT=ignore"
        if plain is not None and plain.statement
        else _MORE_RECALL,
    )
    neighbours, known_items, stored = measured.neighbours, measured.known_items, measured.stored_vectors
    yield _check(
        "neighbour_agreement",
        neighbours.highest_above_chance if neighbours else None,
        bounds.neighbour_agreement,
        f"{neighbours.summary()}, upper end of the 95% interval above chance" if neighbours else None,
        f"vectors do not belong to their rows, or one model does not understand these texts; {measured.culprit(bounds)}",
    )
    yield _check(
        "known_item_success",
        known_items.highest_success if known_items else None,
        bounds.known_item_success,
        f"{known_items.summary()}, upper end of the 95% interval" if known_items else None,
        "vectors do not belong to their rows, or queries and rows are embedded by different models",
    )
    poolings = measured.poolings
    yield _check(
        "pooling_advantage",
        poolings.highest_advantage if poolings else None,
        bounds.pooling_advantage,
        poolings.summary() if poolings else None,
        "the model is set up with another pooling than it was trained for: correct 1_Pooling/config.json in its folder",
    )
    yield _check(
        "stored_vectors_matching",
        stored.matching_share if stored else None,
        bounds.stored_vectors_matching,
        stored.summary() if stored else None,
        "the column holds vectors of another model, pooling or text",
    )
    yield _check(
        "unit_length",
        stored.unit_length_share if stored else None,
        bounds.unit_length,
        stored.summary() if stored else None,
        "the model that filled the column does not normalise, so distances mean something else",
    )
    yield _check(
        "read_whole",
        measured.read_whole,
        bounds.read_whole,
        "share of sampled texts that the model reads to their end",
        "most vectors ignore a part of their text: cut the texts into shorter rows, correct the model's length limit, or set "
        "QUALITY_MIN_READ_WHOLE if that is meant",
    )


def _number(value: float | None) -> str:
    return "an unknown value" if value is None else f"{value:.3f}"


def _retained(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return None
    if not old:
        return 1.0 if new else None  # where neither finds anything, nothing was learned
    return new / old


def _check(name: str, value: float | None, bound: float, measured: str | None, on_failure: str) -> GateCheck:
    if value is None:
        return GateCheck(name, None, bound, True, "not measured")
    if value >= bound:
        return GateCheck(name, value, bound, True, f"{measured}: {value:.4g}, at least {bound:.4g} wanted")
    return GateCheck(name, value, bound, False, f"{measured}: {value:.4g}, expected at least {bound:.4g}; {on_failure}")
