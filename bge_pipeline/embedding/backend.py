"""What runs a network: the one interface of every library and device. A backend runs batches and knows no model."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.embedding.agreement import Agreement
from bge_pipeline.embedding.tasks import Task
from bge_pipeline.embedding.tokens import RaggedTokens


class Backend(Protocol):
    """Runs one network over token ids. Implementations are thread-safe."""

    @property
    def library(self) -> str:
        """What runs the network, by the name that people give it."""
        ...

    @property
    def device(self) -> str:
        """Where the arithmetic happens."""
        ...

    @property
    def precision(self) -> str:
        """`fp32`, `bf16`, `fp16` or `int8`: the arithmetic in use, which may not be the one asked for."""
        ...

    @property
    def quantization(self) -> Agreement | None:
        """The verdict on int8 where it was asked for, whether or not it is in use."""
        ...

    @property
    def concurrent_calls(self) -> int:
        """How many threads should call `run` at once to keep the device busy."""
        ...

    def run(self, tokens: RaggedTokens, *, max_texts: int, task: Task | None = None) -> NDArray[np.float32]:
        """One output a text, float32 (n, width), in order, with at most `max_texts` in one forward pass.

        Args:
            task: what becomes of the states this once, in place of the backend's own task.
        """
        ...

    def close(self) -> None:
        """Release the network and the device's memory."""
        ...
