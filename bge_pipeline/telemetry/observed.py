"""A phase as others see it: counted, timed, and a span where traces are asked for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bge_pipeline.telemetry import metrics
from bge_pipeline.telemetry.tracing import span

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def observed(phase: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """A decorator for the function that is a phase, under the phase's name."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def run(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            started = time.perf_counter()
            with metrics.PHASES_UNDER_WAY.labels(phase).track_inprogress(), span(phase):
                try:
                    return function(*arguments, **keywords)
                except BaseException as error:
                    metrics.ERRORS.labels(phase, type(error).__name__).inc()
                    raise
                finally:
                    metrics.PHASE_SECONDS.labels(phase).observe(time.perf_counter() - started)

        return run

    return decorate
