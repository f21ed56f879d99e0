"""A worker's Prometheus metrics, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.protocol import Request
from shared.runtime.logging import lines_dropped
from shared.token_log.interface import Append, Lease
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineStats

WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
PREFIX = "headrace_worker"
GAUGES = {
    "running": "Sequences in the batch",
    "waiting": "Sequences pulled, and not yet in the batch",
    "blocks_used": "KV blocks in use",
    "blocks_total": "KV blocks there are",
    "preemptions": "How often a sequence gave way to another, since the start",
    "prefix_queries": "Tokens that sequences had to compute when they began to run, since the start",
    "prefix_hits": "Those of them that were found computed, since the start",
}


class WorkerMetrics:
    """Counts what one worker does; `registry` is what /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{PREFIX}_requests", "Requests that ended, by outcome", ("model", "outcome"), registry=self.registry
        )
        self._tokens = Counter(
            f"{PREFIX}_tokens", "Tokens of ended requests, by kind", ("model", "kind"), registry=self.registry
        )
        self._wait = Histogram(
            f"{PREFIX}_queue_seconds",
            "From submission to a worker",
            ("model",),
            buckets=WAITS,
            registry=self.registry,
        )
        Gauge(f"{PREFIX}_log_lines_dropped", "Log lines that nobody took", registry=self.registry).set_function(
            lines_dropped
        )
        self._gauges = {
            name: Gauge(f"{PREFIX}_{name}", text, registry=self.registry) for name, text in GAUGES.items()
        }

    def started(self, request: Request, lease: Lease) -> None:
        self._wait.labels(request.model).observe(max(0.0, lease.acquired_at - request.created_at))

    def appended(self, held: ActiveRequest, append: Append) -> None:
        terminal = append.event.terminal
        if terminal is not None:
            self._ended(held, terminal.state.value)

    def cancelled(self, held: ActiveRequest) -> None:
        self._ended(held, "cancelled")

    def _ended(self, held: ActiveRequest, outcome: str) -> None:
        model = held.delivery.request.model
        self._requests.labels(model, outcome).inc()
        self._tokens.labels(model, "prompt").inc(len(held.prompt))
        self._tokens.labels(model, "completion").inc(held.next_seq)

    def observe(self, stats: EngineStats) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stats, name))
