"""Traces: spans of phases and batches reach a real collector's address; without TRACES nothing is imported."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bge_pipeline.errors import ConfigurationError
from bge_pipeline.telemetry.tracing import here, span, tracing
from bge_pipeline_tests.support import execute


@pytest.fixture
def collector():
    """Takes what an OpenTelemetry collector takes over HTTP; gives the spans so far."""
    pytest.importorskip("opentelemetry.proto", reason="needs the extra `traces`")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def spans():
        assert {path for path, _ in requests} == {"/v1/traces"}
        found = [ExportTraceServiceRequest.FromString(body) for _, body in requests]
        return [
            (item, {a.key: a.value.string_value for a in resource.resource.attributes})
            for request in found
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for item in scope.spans
        ]

    yield f"http://127.0.0.1:{server.server_address[1]}", spans
    server.shutdown()
    server.server_close()


@pytest.mark.pgvector
def test_a_backfill_is_a_span_with_its_batches_in_it(slow, start, collector):
    execute(slow, "DROP TRIGGER dawdle ON segments")
    endpoint, spans = collector
    process = start("backfill", TRACES="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, BACKFILL_BATCH_ROWS="100")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = spans()
    assert {attributes["service.name"] for _, attributes in found} == {"bge-pipeline"}
    (backfill,) = [item for item, _ in found if item.name == "backfill"]
    batches = [item for item, _ in found if item.name in ("encode", "write")]
    assert {item.name for item in batches} == {"encode", "write"}
    assert {item.parent_span_id for item in batches} == {backfill.span_id}
    assert {item.trace_id for item in batches} == {backfill.trace_id}
    figures = [{a.key: a.value.int_value for a in item.attributes} for item in batches if item.name == "write"]
    assert sum(figure["written"] for figure in figures) == 300
    assert all(figure["tokens"] > 0 for figure in figures)


def test_without_traces_nothing_is_imported_and_a_span_is_nothing():
    code = (
        "import sys, bge_pipeline.cli, bge_pipeline.phases.row_path; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"
    with span("phase", rows=1) as later:
        later["written"] = 1
    assert here() is None


def test_a_missing_library_is_named(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    wanted = settings.model_copy(update={"traces": "otlp"})
    with (
        pytest.raises(ConfigurationError, match=r"TRACES=otlp: opentelemetry\.sdk\.trace is not installed"),
        tracing(wanted),
    ):
        pass


@pytest.mark.pgvector
def test_a_collector_that_is_away_stops_no_work(slow, start):
    execute(slow, "DROP TRIGGER dawdle ON segments")
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    process = start("backfill", TRACES="otlp", **away)
    process.communicate(timeout=90)
    assert process.returncode == 0
