"""Running a converted network with OpenVINO on the CPU. Imported only when it is used."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from bge_pipeline.embedding.agreement import Agreement
from bge_pipeline.embedding.layouts import Batch, Layout
from bge_pipeline.embedding.processor import is_quicker_in_bf16
from bge_pipeline.embedding.tasks import Task
from bge_pipeline.embedding.tokens import RaggedTokens
from bge_pipeline.errors import ConfigurationError, EncodingError, OutOfMemory

_TOKEN_BUDGET = 1_024
"""Tokens in a batch, padding included: enough that weights are read seldom, few enough that activations stay in the cache."""

_CAPABILITY_OF_PRECISION = {"bf16": "BF16", "fp16": "FP16"}
_HINT_OF_PRECISION = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

# The bindings fill these tables on first use, inside a C++ guard but with Python's lock released in between: two threads
# that come first together wait for each other for ever. An import is done by one thread.
ov.Type.i64.to_dtype()
ov.Tensor(np.zeros(1, np.int64))
_warm_up_lock = threading.Lock()


def best_precision() -> str:
    """bf16 where the processor is quicker in it, else fp32. OpenVINO itself takes bf16 wherever it can imitate it."""
    return "bf16" if is_quicker_in_bf16() and "BF16" in _capabilities() else "fp32"


def check_precision(precision: str) -> None:
    """Raise ConfigurationError unless this processor computes in that precision."""
    capability = _CAPABILITY_OF_PRECISION.get(precision)
    if capability is not None and capability not in _capabilities():
        raise ConfigurationError(
            f"EMBEDDING_PRECISION={precision}: this processor has no instructions for it; expected auto, fp32 or int8"
        )


class OpenVinoBackend:
    """Runs a converted network over ragged tokens, several batches at once. Thread-safe.

    Calls from several threads share one pool of requests, so that the last batches of one call run beside the first of
    the next.

    Args:
        model: the `model.xml` of a converted network.
        layout: how texts are laid out for it.
        task: what becomes of its output.
        precision: `fp32`, `bf16` or `fp16`; `int8` for a quantised network.
        threads: cores to use; all when not given.

    Attributes:
        quantization: the verdict on int8 where it was asked for, whether or not it is in use.
    """

    library = "OpenVINO"
    device = "cpu"
    concurrent_calls = 2

    def __init__(self, model: Path, layout: Layout, task: Task, *, precision: str, threads: int | None = None) -> None:
        self.precision = precision
        self.quantization: Agreement | None = None
        hint = _HINT_OF_PRECISION[best_precision() if precision == "int8" else precision]
        options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled: ov.CompiledModel | None = ov.Core().compile_model(model, "CPU", options)
        self._inputs = [port.any_name for port in self._compiled.inputs]
        self._layout = layout
        self._task = task
        # One more than run at once, so that the next batch is padded and waiting when one ends.
        workers = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="openvino")
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(self._compiled.create_infer_request())
        with _warm_up_lock:
            one_text = RaggedTokens(np.zeros(2, np.int32), np.array([0, 2]), np.zeros(2, np.int32))
            self.run(one_text, max_texts=1)

    def run(self, tokens: RaggedTokens, *, max_texts: int, task: Task | None = None) -> NDArray[np.float32]:
        """One output a text, float32 (n, width), in their order; `task` takes the place of the backend's own.

        Raises:
            OutOfMemory: there is none left.
            EncodingError: OpenVINO failed, or the backend was closed.
        """
        if self._compiled is None:
            raise EncodingError("this encoder was shut down")
        batches = self._layout.plan(tokens.lengths, token_budget=_TOKEN_BUDGET, max_texts=max_texts)
        under_way: list[Future[NDArray[np.float32]]] = [
            self._workers.submit(self._infer, tokens, batch, task or self._task) for batch in batches
        ]
        try:
            result = np.empty((len(tokens), under_way[0].result().shape[1]), np.float32)
            for batch, future in zip(batches, under_way, strict=True):
                result[batch.rows] = future.result()
        except MemoryError as error:
            raise OutOfMemory(f"out of memory on the CPU with {len(tokens)} texts") from error
        except RuntimeError as error:
            raise EncodingError(f"OpenVINO failed on {len(tokens)} texts: {error}") from error
        finally:
            for future in under_way:
                future.cancel()
        return result

    def close(self) -> None:
        """Wait for what is under way, then release the network."""
        self._workers.shutdown(cancel_futures=True)
        self._compiled = None
        self._idle = queue.SimpleQueue()

    def _infer(self, tokens: RaggedTokens, batch: Batch, task: Task) -> NDArray[np.float32]:
        arrays = self._layout.arrays(tokens, batch)
        request = self._idle.get()
        try:
            # Asynchronous even though this thread waits: only so does it run on the streams that the plugin planned.
            request.start_async({name: arrays[name] for name in self._inputs}, share_inputs=True)
            request.wait()
            found = request.get_output_tensor(0).data
            return np.array(task.outputs(found, batch.starts, batch.lengths))
        finally:
            self._idle.put(request)


def _capabilities() -> list[str]:
    return list(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
