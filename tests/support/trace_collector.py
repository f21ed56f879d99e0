"""OpenTelemetry collector in the process of a test: it takes OTLP over HTTP and keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from shared.backend import Backend
from shared.settings import Settings
from shared.tracing.opening import Process, open_tracer

ERROR = Status.StatusCode.STATUS_CODE_ERROR


@dataclass(frozen=True)
class ExportedSpan:
    """One span; ids are in hexadecimal digits, times in ns."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[str]
    links: list[tuple[str, str]]
    failed: bool
    started: int
    ended: int

    @property
    def outcome(self) -> Any:
        return self.attributes.get("headrace.outcome")


class Collector:
    """Spans that arrived, and the bytes that carried them.

    While `answering` is cleared, exports get no answer.
    """

    def __init__(self) -> None:
        self.url = ""
        self.received: list[bytes] = []
        self.answering = threading.Event()
        self.answering.set()

    @property
    def spans(self) -> list[ExportedSpan]:
        """The spans of all exports, by their start."""
        return sorted((span for body in self.received for span in _spans(body)), key=lambda span: span.started)

    def named(self, name: str) -> list[ExportedSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ExportedSpan:
        """Return the only span of a name."""
        [found] = self.named(name)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.answering.wait()
            if self.path == "/v1/traces":
                collector.received.append(body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    try:
        yield collector
    finally:
        collector.answering.set()
        server.shutdown()
        serving.join()
        server.server_close()


@asynccontextmanager
async def traced(
    settings: Settings, collector: Collector, process: Process, **given: Any
) -> AsyncIterator[Backend]:
    """Yield a backend whose spans have reached the collector once it is closed; `given` are further settings."""
    settings = settings.model_copy(update={"otel_endpoint": collector.url, **given})
    backend = Backend.open(settings, open_tracer(settings, process))
    try:
        yield backend
    finally:
        await backend.close()


def _spans(body: bytes) -> Iterator[ExportedSpan]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ExportedSpan(
                    service=service,
                    name=span.name,
                    kind=ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    attributes=_values(span.attributes),
                    events=[event.name for event in span.events],
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    failed=span.status.code == ERROR,
                    started=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
