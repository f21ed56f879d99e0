"""Prometheus metrics of a worker process, in a separate registry."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.models.startup_progress import PHASES, StartupProgress
from shared.protocol import Request, Usage
from shared.runtime.logging import lines_dropped
from shared.token_log.interface import Append, Lease
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineStats

WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
PREFIX = "headrace_worker"
GAUGES = {
    "running": "Sequences in the batch",
    "waiting": "Sequences pulled and not yet in the batch",
    "blocks_used": "KV blocks in use",
    "blocks_total": "KV blocks in total",
    "preemptions": "Sequences preempted by others, since the start",
    "prefix_queries": "Tokens looked up in the prefix cache by sequences that began to run, since the start",
    "prefix_hits": "Tokens found in the prefix cache, since the start",
}


class WorkerMetrics:
    """Counters and gauges of the workers of one process, by model; /metrics shows `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{PREFIX}_requests", "Requests that ended, by outcome", ("model", "outcome"), registry=self.registry
        )
        self._tokens = Counter(
            f"{PREFIX}_tokens", "Tokens of ended requests, by kind", ("model", "kind"), registry=self.registry
        )
        self._queue_seconds = Histogram(
            f"{PREFIX}_queue_seconds",
            "Seconds from submission until a worker takes the request",
            ("model",),
            buckets=WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._canaries = Counter(
            f"{PREFIX}_canaries",
            "Canaries that an idle worker ran, by outcome",
            ("outcome",),
            registry=self.registry,
        )
        self._step_age = Gauge(
            f"{PREFIX}_step_age_seconds",
            "Age of the engine's current step; 0 between steps",
            ("model",),
            registry=self.registry,
        )
        Gauge(
            f"{PREFIX}_log_lines_dropped",
            "Log lines dropped because stderr could not take them",
            registry=self.registry,
        ).set_function(lines_dropped)
        self._startup_seconds = Gauge(
            f"{PREFIX}_startup_seconds",
            "Seconds that the last start took, by phase, and in total; phases may overlap",
            ("phase",),
            registry=self.registry,
        )
        self._gauges = {
            name: Gauge(f"{PREFIX}_{name}", text, ("model",), registry=self.registry)
            for name, text in GAUGES.items()
        }

    def count_start(self, request: Request, lease: Lease) -> None:
        self._queue_seconds.labels(request.model).observe(max(0.0, lease.acquired_at - request.created_at))

    def count_append(self, active: ActiveRequest, append: Append) -> None:
        terminal = append.event.terminal
        if terminal is not None:
            self._count_end(active, terminal.state.value, terminal.usage)

    def count_cancellation(self, active: ActiveRequest) -> None:
        self._count_end(active, "cancelled", Usage(len(active.prompt), active.next_seq))

    def count_canary(self, outcome: Literal["completed", "failed"]) -> None:
        self._canaries.labels(outcome).inc()

    def _count_end(self, active: ActiveRequest, outcome: str, usage: Usage) -> None:
        model = active.delivery.request.model
        self._requests.labels(model, outcome).inc()
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)

    def show_startup(self, progress: StartupProgress) -> None:
        """Show the phases of the start that has just ended."""
        for phase in PHASES:
            self._startup_seconds.labels(phase).set(progress.seconds.get(phase, 0.0))
        self._startup_seconds.labels("total").set(progress.total())

    def observe(self, model: str, stats: EngineStats, step_age: float | None) -> None:
        self._step_age.labels(model).set(step_age or 0.0)
        for name, gauge in self._gauges.items():
            gauge.labels(model).set(getattr(stats, name))

    def forget(self, model: str) -> None:
        """Remove the gauges of a model that this process no longer has; its counters stay."""
        for gauge in (self._step_age, *self._gauges.values()):
            with suppress(KeyError):  # no heartbeat has set it
                gauge.remove(model)
