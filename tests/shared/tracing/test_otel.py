"""Tracer: ids, sampling, and a collector that is away or does not answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from shared.errors import ConfigError
from shared.settings import load
from shared.tracing.conventions import http_span
from shared.tracing.opening import open_tracer
from shared.tracing.otel import OtelTracer, ReportingExporter
from shared.tracing.trace_context import run_traceparent
from tests.support.trace_collector import Collector
from tests.support.waiting import LIMIT_S

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


def tracer(collector: Collector, **given: Any) -> OtelTracer:
    opened = open_tracer(load({"otel_endpoint": collector.url, **given}).settings, "api")
    assert isinstance(opened, OtelTracer)
    return opened


@pytest.mark.parametrize(
    ("ratio", "parent", "exported"),
    [(None, "", True), (0, "", False), (0, SAMPLED, True), (None, UNSAMPLED, False), (1, "junk", True)],
)
async def test_the_caller_decides_whether_its_trace_is_exported(
    collector: Collector, ratio: float | None, parent: str, exported: bool
) -> None:
    opened = tracer(collector, otel_sample_ratio=ratio)
    span = opened.start(http_span("GET", "/x"), parent)
    below = span.child(http_span("GET", "/y"))
    below.end()
    span.end()
    await opened.close()
    assert [each.name for each in collector.spans] == (["GET /x", "GET /y"] if exported else [])
    for context in (span.traceparent, below.traceparent):
        assert context[-1] in ("13" if exported else "02")
        assert (context[3:35] == TRACE) is (parent in (SAMPLED, UNSAMPLED))


async def test_opentelemetrys_own_variables_are_read(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    unsampled = tracer(collector, otel_service_name="mine")
    unsampled.start(http_span("GET", "/no")).end()
    await unsampled.close()
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    named = tracer(collector, otel_service_name="mine")
    named.start(http_span("GET", "/a")).end()
    await named.close()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "exact")
    other = tracer(collector, otel_service_name="mine")
    other.start(http_span("GET", "/b")).end()
    await other.close()
    assert [(span.name, span.service) for span in collector.spans] == [("GET /a", "mine-api"), ("GET /b", "exact")]
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(ConfigError, match="OTEL_"):
        tracer(collector)


async def test_a_span_gets_the_ids_of_its_run(collector: Collector) -> None:
    """Given a run without a caller's trace, its trace and span follow from its job and its lease epoch."""
    first, second = (run_traceparent("", "req_1", epoch) for epoch in (1, 2))
    opened = tracer(collector)
    started = opened.start(http_span("GET", "/run"), own=second, link=first)
    started.child(http_span("GET", "/below")).end()
    started.end()
    opened.start(http_span("GET", "/other")).end()
    await opened.close()
    run, below, other = (collector.one(f"GET /{path}") for path in ("run", "below", "other"))
    assert (f"00-{run.trace_id}-{run.span_id}-01", run.parent_id) == (second, "")
    assert (below.parent_id, below.trace_id) == (run.span_id, run.trace_id)
    assert below.span_id != run.span_id
    assert run.links == [(first[3:35], first[36:52])]
    assert first[3:35] == second[3:35] != other.trace_id
    assert run_traceparent(SAMPLED, "req_1", 2) == f"00-{TRACE}-{run.span_id}-01"


async def test_a_hanging_collector_holds_nothing_up(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more spans than the SDK keeps, and exports without an answer, starting, ending and closing return."""
    monkeypatch.setattr("shared.tracing.otel.FLUSH_LIMIT_S", 0.05)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    collector.answering.clear()
    opened = tracer(collector)
    for _ in range(50):
        opened.start(http_span("GET", "/x")).end()
    with capture_logs() as lines:
        await opened.close()
    assert [line["event"] for line in lines] == ["traces_not_flushed"]
    assert collector.received == []
    collector.answering.set()
    for flushing in [each for each in threading.enumerate() if each.name == "trace-flush"]:
        await asyncio.to_thread(flushing.join, LIMIT_S)  # it draws random pauses, which other tests would notice
        assert not flushing.is_alive()


class Faulty(SpanExporter):
    """Exporter whose results a test gives."""

    def __init__(self, *succeeds: bool) -> None:
        self._results = iter(succeeds)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS if next(self._results) else SpanExportResult.FAILURE


def test_an_outage_is_logged_once() -> None:
    exporter = ReportingExporter(Faulty(True, False, False, True, True), "http://x")
    span = ReadableSpan("x")
    with capture_logs() as lines:
        for _ in range(5):
            exporter.export([span, span])
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("trace_export_failed", "warning"),
        ("trace_export_resumed", "info"),
    ]
    assert lines[1]["spans_lost"] == 4


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.tracing.otel", None)
    with pytest.raises(ConfigError, match=r"otel_endpoint needs the package headrace\[otel\]"):
        open_tracer(load({"otel_endpoint": "http://localhost:4318"}).settings, "api")


@pytest.mark.parametrize("url", ["localhost:4318", "http://user:secret@localhost:4318", "http://x y"])
def test_an_endpoint_is_a_url_without_credentials(url: str) -> None:
    with pytest.raises(ConfigError, match="otel_endpoint"):
        load({"otel_endpoint": url})


@pytest.mark.slow
def test_without_tracing_no_span_library_is_needed() -> None:
    """Given no SDK and no exporter, the API, the batch runner and a worker start, and tracing is off.

    FastAPI needs OpenTelemetry's API, and redis-py imports the metrics of the SDK where it is installed.
    """
    code = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
import producer_api.rpc.server, producer_api.batch_runner.process, workers.main, workers.kafka.intake
from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import load
from shared.tracing.opening import open_tracer
settings = load({"data_dir": sys.argv[1]}).settings
backend = Backend.open(settings, open_tracer(settings, "api"))
create_app(settings, backend)
print(backend.tracer, "shared.tracing.otel" in sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", code, "/nonexistent"], check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (found.stdout.strip(), found.stderr) == ("None False", "")
