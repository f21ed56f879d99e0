"""Tracer on OpenTelemetry's SDK, which exports spans by OTLP over HTTP.

A thread of the SDK exports batches. It waits for the collector; requests wait for nothing. While the collector is
away, the SDK keeps a bounded number of spans and drops the oldest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Self

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from shared.errors import ConfigError
from shared.runtime.logging import log_library_warnings
from shared.settings import Settings
from shared.tracing.conventions import ERROR_TYPE
from shared.tracing.interface import SpanStart, Value
from shared.tracing.trace_context import valid_traceparent

TRACES_PATH = "/v1/traces"
FLUSH_LIMIT_S = 1.0  # for the last spans at shutdown; a worker on a node that leaves has two seconds
# The exporter logs each attempt, and the processor each 20 s of a full queue; ReportingExporter logs once instead.
QUIET = {
    "opentelemetry.exporter": logging.CRITICAL,
    "opentelemetry.sdk._shared_internal": logging.ERROR,
}

log = structlog.get_logger(__name__)


class OtelSpan:
    """Span of OpenTelemetry's."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def child(self, start: SpanStart) -> OtelSpan:
        below = trace.set_span_in_context(self._span)
        started = self._tracer.start_span(
            start.name, below, SpanKind[start.kind.name], start.attributes, record_exception=False
        )
        return OtelSpan(self._tracer, started)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def end(self, error: str = "", *, fault: bool = True) -> None:
        if error:
            self._span.set_attribute(ERROR_TYPE, error)
            if fault:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class GivenIds(RandomIdGenerator):
    """Random ids, except for the span for which others are given. All spans are started in one thread."""

    def __init__(self) -> None:
        self.given: SpanContext | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.given is None else self.given.trace_id

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.given is None else self.given.span_id


class ReportingExporter(SpanExporter):
    """Exporter that logs when another one begins to fail, and when it works again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                log.warning("trace_export_failed", endpoint=self._endpoint)
            self._lost += len(spans)
        elif self._lost:
            log.info("trace_export_resumed", endpoint=self._endpoint, spans_lost=self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class OtelTracer:
    """Tracer of one process."""

    def __init__(self, provider: TracerProvider, ids: GivenIds) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("headrace")
        self._ids = ids

    @classmethod
    def from_settings(cls, settings: Settings, process: str) -> Self:
        """Return a tracer that exports to `otel_endpoint`; OpenTelemetry's own variables decide the rest.

        Raises ConfigError if one of them is refused.
        """
        assert settings.otel_endpoint is not None, "tracing is off"
        log_library_warnings("opentelemetry")
        ratio, ids = settings.otel_sample_ratio, GivenIds()
        name = os.environ.get(OTEL_SERVICE_NAME) or f"{settings.otel_service_name}-{process}"
        resource = Resource.create({SERVICE_NAME: name, SERVICE_INSTANCE_ID: secrets.token_hex(8)})
        endpoint = settings.otel_endpoint.rstrip("/") + TRACES_PATH
        try:
            exporter = ReportingExporter(OTLPSpanExporter(endpoint=endpoint), endpoint)
            processor = BatchSpanProcessor(exporter)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"a variable OTEL_… has a wrong value: {error}") from None
        provider = TracerProvider(
            sampler=None if ratio is None else ParentBasedTraceIdRatio(ratio),
            resource=resource,
            shutdown_on_exit=False,  # it would wait without a limit
            id_generator=ids,
        )
        provider.add_span_processor(processor)
        for logger, level in QUIET.items():
            logging.getLogger(logger).setLevel(level)
        return cls(provider, ids)

    def start(self, start: SpanStart, parent: str = "", *, own: str = "", link: str = "") -> OtelSpan:
        above, linked = _context(parent), _context(link)
        parent_span = trace.INVALID_SPAN if above is None else NonRecordingSpan(above)
        self._ids.given = _context(own)
        started = self._tracer.start_span(
            start.name,
            trace.set_span_in_context(parent_span),
            SpanKind[start.kind.name],
            start.attributes,
            [] if linked is None else [Link(linked)],
            record_exception=False,
        )
        self._ids.given = None
        return OtelSpan(self._tracer, started)

    async def close(self) -> None:
        # not a thread of the event loop's pool: the process would wait for one that hangs
        flushing = threading.Thread(target=self._provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_LIMIT_S)
        if flushing.is_alive():
            log.warning("traces_not_flushed", limit_s=FLUSH_LIMIT_S)


def _context(traceparent: str) -> SpanContext | None:
    """Return the span that a trace context names; None if it is empty or invalid."""
    valid = valid_traceparent(traceparent)
    if not valid:
        return None
    _, trace_id, span_id, flags = valid.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
