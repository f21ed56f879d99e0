"""Spans of one run of a request: its processing on this worker, and the computation within it."""

from __future__ import annotations

import time

from shared.protocol import TokenEvent
from shared.queue.interface import Delivery
from shared.token_log.interface import Lease
from shared.tracing import conventions
from shared.tracing.interface import Span, Tracer
from shared.tracing.trace_context import run_traceparent

FAULTS = ("engine_hung", "failed", "lease_lost")  # other outcomes are no error


class RunSpans:
    """Spans of a run; this class, for a worker without a tracer, does nothing."""

    def enter_engine(self) -> None:
        """Note that the engine has the request."""

    def record(self, event: TokenEvent) -> None:
        """Note what was appended to the answer."""

    def end(self, outcome: str) -> None:
        """End the run, with this outcome unless a terminal event was recorded."""


UNTRACED = RunSpans()


def spans_of_run(tracer: Tracer | None, delivery: Delivery, lease: Lease) -> RunSpans:
    """Start the spans of a run; without a tracer, return UNTRACED."""
    return UNTRACED if tracer is None else TracedRun(tracer, delivery, lease)


class TracedRun(RunSpans):
    """The spans of a run, in the trace of its request.

    The ids of the first one follow from the run's id. So a run after another one links to it, even if that one's
    worker was lost; a worker that was killed has exported nothing.
    """

    def __init__(self, tracer: Tracer, delivery: Delivery, lease: Lease) -> None:
        request, epoch = delivery.request, lease.epoch
        self._request = request
        self._resumed = lease.next_seq > 0
        self._waited = max(0.0, lease.acquired_at - request.created_at)
        self._began = time.monotonic()
        self._first_token_at: float | None = None
        self._finish_reasons: dict[int, str] = {}
        self._outcome = self._error = ""
        start = conventions.process_span(
            request, run_id=f"{request.id}/{epoch}", worker=lease.owner, attempt=delivery.attempt
        )
        self._process = tracer.start(
            start,
            request.traceparent,
            own=run_traceparent(request.traceparent, request.id, epoch),
            link=run_traceparent(request.traceparent, request.id, epoch - 1) if epoch > 1 else "",
        )
        self._inference: Span | None = None

    def enter_engine(self) -> None:
        self._inference = self._process.child(conventions.inference_span(self._request))

    def record(self, event: TokenEvent) -> None:
        for token in event.tokens:
            if token.finish_reason is not None:
                self._finish_reasons[token.choice] = token.finish_reason.value
        if event.tokens and self._first_token_at is None:
            self._first_token_at = time.monotonic()
            if self._inference is not None and not self._resumed:
                self._inference.event(conventions.FIRST_TOKEN)
        if event.terminal is not None:
            self._outcome = event.terminal.state.value
            self._error = "" if event.terminal.error is None else event.terminal.error.code
            if self._inference is not None:
                self._inference.set(conventions.answered(self._request, event.terminal, self._finish_reasons))

    def end(self, outcome: str) -> None:
        ended_as = self._outcome or outcome
        error = self._error or (ended_as if ended_as in FAULTS else "")
        if self._inference is not None:
            self._set_latencies(self._inference, ended=self._outcome != "")
            self._inference.end(error)
        self._process.set(conventions.outcome(ended_as))
        self._process.end(error)

    def _set_latencies(self, span: Span, *, ended: bool) -> None:
        """Set the times since admission; the first token is that of this run only if it began the answer."""
        since_admission = self._waited - self._began
        span.set(conventions.latency("time_in_queue", self._waited))
        if self._first_token_at is not None and not self._resumed:
            span.set(conventions.latency("time_to_first_token", since_admission + self._first_token_at))
        if ended:
            span.set(conventions.latency("e2e", since_admission + time.monotonic()))
