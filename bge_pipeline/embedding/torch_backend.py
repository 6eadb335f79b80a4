"""Running a network with PyTorch, on CPU, CUDA or MPS. Imported only when it is used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bge_pipeline.embedding.attention import PackedAttention, packed_attention
from bge_pipeline.embedding.device import best_precision
from bge_pipeline.embedding.families import family_of
from bge_pipeline.embedding.layouts import Batch, Layout, halves
from bge_pipeline.embedding.layouts.end_to_end import EndToEnd
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.memory import MORE_MEMORY, is_out_of_memory, short_of_memory, tokens_that_fit
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.networks import EndToEndNetwork, Network, PaddedNetwork, ScoringNetwork
from bge_pipeline.embedding.tasks import ScorePairs, Task
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.embedding.weights import load_transformer
from bge_pipeline.errors import EncodingError, OutOfMemory

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_torch_backend(
    files: ModelFiles,
    task: Task,
    *,
    device: str,
    precision: str,
    pad_id: int,
    token_budget: int | None = None,
    attend: PackedAttention | None = None,
) -> TorchBackend:
    """A model's network on a device, without padding where the device and the network's family allow it.

    Args:
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        attend: attention over texts end to end; None takes what the device has.

    Raises:
        ModelUnavailable: the network cannot be loaded.
        OutOfMemory: it does not fit into memory.
    """
    family = family_of(files.config)
    precision = best_precision(device, family) if precision == "auto" else precision
    transformer = load_transformer(files, task.name)
    network: Network
    layout: Layout = Padded(pad_id)
    if isinstance(task, ScorePairs):
        network = ScoringNetwork(transformer)
    elif EndToEnd in family.layouts and (attend := attend or packed_attention(device, precision)) is not None:
        network, layout = EndToEndNetwork(transformer, attend), EndToEnd()
    else:
        network = PaddedNetwork(transformer)
    return TorchBackend(network, layout, task, device=device, precision=precision, token_budget=token_budget)


class TorchBackend:
    """Runs a network over ragged tokens. Thread-safe.

    Args:
        network: takes what `layout` gives.
        layout: how texts are laid out for it.
        task: what becomes of its output.
        token_budget: most padded tokens in one forward pass; what fits into free memory when not given.

    Raises:
        OutOfMemory: the network does not fit on the device.
    """

    library = "PyTorch"

    def __init__(
        self,
        network: Network,
        layout: Layout,
        task: Task,
        *,
        device: str,
        precision: str,
        token_budget: int | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.quantization = None
        self.concurrent_calls = 2 if device.startswith("cuda") else 1
        self._layout = layout
        self._task = task
        self._device = torch.device(device)
        self._empty_cache()  # of a larger model that was tried before
        with short_of_memory(f"no memory on {device} for the network in {precision}"):
            self._network: Network | None = network.to(self._device, _DTYPES[precision])
        self._token_budget = token_budget or tokens_that_fit(device, network.transformer.config)

    @property
    def token_budget(self) -> int:
        """Most padded tokens in one forward pass; halves for good when memory runs out."""
        return self._token_budget

    def run(self, tokens: RaggedTokens, *, max_texts: int, task: Task | None = None) -> NDArray[np.float32]:
        """One output a text, float32 (n, width), in their order; `task` takes the place of the backend's own.

        Raises:
            OutOfMemory: memory runs out even on the smallest batch.
        """
        with torch.inference_mode(), short_of_memory(f"out of memory on {self.device}"):
            outputs = [
                (batch.rows, output) for batch, output in self._forward_all(tokens, max_texts, task or self._task)
            ]
            rows = np.concatenate([rows for rows, _ in outputs])
            together = torch.cat([output for _, output in outputs]).cpu().numpy()
        result = np.empty_like(together)
        result[rows] = together
        return result

    def close(self) -> None:
        """Release the network and give the device's memory back."""
        self._network = None
        self._empty_cache()

    def _forward_all(self, tokens: RaggedTokens, max_texts: int, task: Task) -> Iterator[tuple[Batch, Tensor]]:
        left = self._layout.plan(tokens.lengths, token_budget=self._token_budget, max_texts=max_texts)
        left.reverse()
        while left:
            batch = left.pop()
            try:
                output = self._forward(tokens, batch, task)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(batch, error)
            else:
                yield batch, output
                continue
            left.extend(reversed(halves(self._layout, batch)))

    def _forward(self, tokens: RaggedTokens, batch: Batch, task: Task) -> Tensor:
        if self._network is None:
            raise EncodingError("this encoder was shut down")
        found = self._network(**self._to_device(self._layout.arrays(tokens, batch)))
        output: Tensor = task.outputs(found, **self._to_device({"starts": batch.starts, "lengths": batch.lengths}))
        return output

    def _to_device(self, arrays: dict[str, Any]) -> dict[str, Any]:
        on_cuda = self._device.type == "cuda"
        moved = {}
        for name, value in arrays.items():
            if isinstance(value, np.ndarray):
                host = torch.from_numpy(value)
                moved[name] = (host.pin_memory() if on_cuda else host).to(self._device, non_blocking=on_cuda)
            else:
                moved[name] = value
        return moved

    def _shrink(self, batch: Batch, error: BaseException) -> None:
        if len(batch.rows) == 1:
            raise OutOfMemory(
                f"out of memory on {self.device} with a single text of {batch.lengths[0]} tokens", next_step=MORE_MEMORY
            ) from error
        tried = len(batch.rows) * int(batch.lengths.max())
        self._token_budget = max(1, min(self._token_budget, tried) // 2)
        self._empty_cache()
        _log.warning(
            "out of memory on %s with %d tokens; going on with at most %d", self.device, tried, self._token_budget
        )

    def _empty_cache(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
