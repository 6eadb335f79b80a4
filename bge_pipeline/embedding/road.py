"""The road that a model takes here: what runs it, how that was proved, and what kept it off a faster one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bge_pipeline.embedding.agreement import Agreement

SENTENCE_TRANSFORMERS = "sentence-transformers"


@dataclass(frozen=True)
class Road:
    """What runs a model, and why.

    Attributes:
        library: `OpenVINO`, `PyTorch` or `sentence-transformers`.
        proof: how well its vectors agree with those of sentence-transformers in fp32; None where these are the same thing.
        detours: why each faster way was not taken, in words.
    """

    library: str
    proof: Agreement | None = None
    detours: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = self.library
        if self.proof is not None:
            words += (
                f", which agrees with {SENTENCE_TRANSFORMERS} in fp32 on {self.proof.texts} texts "
                f"(smallest cosine {self.proof.figures['min_cosine']:.5f})"
            )
        return "; ".join((words, *self.detours))

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "library": self.library,
            "proof": self.proof.as_dict() if self.proof is not None else None,
            "detours": list(self.detours),
        }
