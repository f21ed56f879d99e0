"""Request log: one line, one count and, where tracing is on, one span per HTTP or gRPC request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.observability.metrics import Metrics, Stopwatch
from shared.errors import HeadraceError
from shared.schemas.unknown_fields import HEADER
from shared.tracing.conventions import served
from shared.tracing.interface import Span, SpanStart, Tracer
from shared.validation.schema_check import NOT_HELD

CLIENT_CLOSED = 499  # nginx's status for a client that left before its answer
OUTCOMES = {CLIENT_CLOSED: "left", 503: "unavailable"}
SETTLE_WINDOW_S = 60.0  # how long after its HTTP request a job is still expected to be settled

log = structlog.get_logger(__name__)


@dataclass
class RequestFacts:
    """Facts about one request that its handling gathers, for the log line and the response's headers.

    Attributes:
        started: when it arrived, by time.perf_counter.
        principal: None until the route's rule has authenticated the caller.
        priority: class of the admitted request.
        refusal: code of the error that the request was answered with.
        prompt: the part of the prompt that the log may show.
        answer: the timing of its answer, if it waits for one.
        awaited_job_ids: the jobs that make up this answer.
        detached: the answer continues without its client.
        headers: of the response, in addition to those of its handler.
        span: the request's span; None without tracing.
    """

    client: Client
    started: float
    principal: Principal | None = None
    model: str = ""
    priority: str = ""
    refusal: str = ""
    job_id: str = ""
    prompt: str = ""
    answer: Stopwatch | None = None
    awaited_job_ids: tuple[str, ...] = ()
    detached: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    span: Span | None = None

    def report_ignored(self, fields: str) -> None:
        """Name unknown fields, if there are any, in the response's headers."""
        if fields:
            self.headers[HEADER] = fields

    def report_not_held(self, keywords: str) -> None:
        """Name keywords of a JSON schema that the answer is not held to in the response's headers."""
        if keywords:
            self.headers[f"x-{NOT_HELD}"] = keywords

    @property
    def caller(self) -> Principal:
        """The authenticated caller together with the client that it used."""
        assert self.principal is not None, "a public route has no caller"
        return replace(self.principal, client=self.client)


class AwaitedJobs:
    """Jobs whose completion is logged together with the HTTP request that waits for them.

    A job may be settled before that request ends or after it; either way its completion is logged once.
    """

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._settled: set[str] = set()  # a subset of the open ones
        self._ended: dict[str, float] = {}  # unsettled jobs and when their request ended, the oldest first

    def begin(self, job_id: str) -> None:
        """Note that an HTTP request waits for the job."""
        self._open.add(job_id)

    def end(self, job_id: str, *, goes_on: bool) -> None:
        """Note that the HTTP request ended and was logged. `goes_on`: the job's end will need its own line."""
        self._open.discard(job_id)
        if job_id in self._settled:
            self._settled.discard(job_id)
        elif not goes_on:
            self._ended[job_id] = time.monotonic()
        self._forget_old()

    def settled(self, job_id: str) -> bool:
        """Note that the job is settled, and return True if its completion needs no line of its own."""
        if job_id in self._open:
            self._settled.add(job_id)
            return True
        return self._ended.pop(job_id, None) is not None

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._ended and now - self._ended[oldest := next(iter(self._ended))] > SETTLE_WINDOW_S:
            del self._ended[oldest]


class RequestLogger:
    """Writes the request log of one process.

    Args:
        metrics: where requests are counted.
        awaited_jobs: receives the jobs whose completion is logged with their request.
        tracer: None where tracing is off.
    """

    def __init__(self, metrics: Metrics, awaited_jobs: AwaitedJobs, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._awaited_jobs = awaited_jobs
        self._tracer = tracer

    def begin(self, facts: RequestFacts, describe: Callable[[], SpanStart]) -> None:
        """Start the span of a request where tracing is on; what the request queues continues its trace."""
        if self._tracer is not None:
            facts.span = self._tracer.start(describe(), facts.client.traceparent)
            facts.client.traceparent = facts.span.traceparent

    def failure(self, facts: RequestFacts) -> HeadraceError:
        """Log the unexpected error being handled, and return an error for the client without its details."""
        log.exception("request_failed", http_request_id=facts.client.http_request_id)
        return HeadraceError("internal server error; the server log has details under this request id")

    def write(
        self, facts: RequestFacts, *, method: str, route: str, status: int, quiet: bool = False, **more: object
    ) -> None:
        """Log and count a request that ended, and end its span.

        Args:
            status: the HTTP status, or its equivalent for gRPC.
            quiet: log at debug level.
            more: fields for the log line alone.
        """
        outcome = OUTCOMES.get(status) or ("failed" if status >= 500 else "refused" if status >= 400 else "ok")
        self._metrics.requests.labels(facts.model, facts.priority, route, outcome).inc()
        if facts.refusal:
            self._metrics.refusals.labels(facts.refusal).inc()
        write: Callable[..., None] = log.debug if quiet else log.info
        write(
            "request",
            http_request_id=facts.client.http_request_id,
            method=method,
            route=route,
            status=status,
            seconds=round(time.perf_counter() - facts.started, 4),
            **_filled({**more, **_fields(facts)}),
        )
        if facts.span is not None:
            _end_span(facts.span, facts, status)
        if facts.answer is not None:
            for job_id in facts.awaited_job_ids:
                self._awaited_jobs.end(job_id, goes_on=facts.detached and not facts.answer.ended)


def _fields(facts: RequestFacts) -> dict[str, object]:
    fields: dict[str, object] = {"model": facts.model, "job_id": facts.job_id, "prompt": facts.prompt}
    fields["trace_id"] = facts.client.trace_id
    if facts.principal is not None:
        fields |= {"tenant": facts.principal.tenant, "key": facts.principal.key_id}
    if facts.answer is not None:
        fields |= facts.answer.summary()
    return fields


def _end_span(span: Span, facts: RequestFacts, status: int) -> None:
    """End the span of a request. An error of the client is not the server's: it leaves the span's status unset."""
    span.set(
        served(
            job_id=facts.job_id,
            model=facts.model,
            tenant="" if facts.principal is None else facts.principal.tenant,
            priority=facts.priority,
            http_request_id=facts.client.http_request_id,
        )
    )
    failure = "" if facts.answer is None else facts.answer.failure
    error = facts.refusal or failure or (str(status) if status >= 400 else "")
    span.end(error, fault=status >= 500 or failure != "")


def _filled(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value not in ("", None)}
