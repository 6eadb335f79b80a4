"""Traces by OpenTelemetry: spans of phases and batches. Nothing of it is imported, and a span costs nothing, unless asked for.

Where the traces go, and under which service's name, is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bge_pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from bge_pipeline.settings import TelemetrySettings

SERVICE = "bge-pipeline"
_tracer: Tracer | None = None


@contextmanager
def tracing(settings: TelemetrySettings) -> Iterator[None]:
    """The spans of the block are sent where TRACES asks for it, the last of them as it ends. A block within it adds nothing.

    Raises:
        ConfigurationError: the extra `traces` is not installed.
    """
    global _tracer  # noqa: PLW0603 - one a process, as in OpenTelemetry itself
    if settings.traces == "off" or _tracer is not None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"TRACES=otlp: {error.name} is not installed", next_step="pip install 'bge-pipeline[traces]', or TRACES=off"
        ) from error
    named = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("bge_pipeline")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


@contextmanager
def span(name: str, within: Context | None = None, **attributes: Any) -> Iterator[dict[str, Any]]:
    """A span of that name, in the one at hand or, from another thread, in what `here` gave.

    Yields:
        A mapping for attributes that are known at its end.
    """
    later: dict[str, Any] = {}
    if _tracer is None:
        yield later
        return
    with _tracer.start_as_current_span(name, context=within, attributes=attributes) as current:
        try:
            yield later
        finally:
            current.set_attributes(later)


def here() -> Context | None:
    """The span at hand, for `span` in another thread; None where nothing is traced."""
    if _tracer is None:
        return None
    from opentelemetry.context import get_current

    return get_current()
