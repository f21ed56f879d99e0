"""Prometheus metrics of the front end. Label values are bounded: names of known models, route templates."""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shared.models.worker_registry import WorkerInfo
from shared.protocol import TokenEvent
from shared.queue.interface import QueueDepth
from shared.runtime.logging import lines_dropped

FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5, 10)
WHOLE_ANSWER = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class WorkerExits(Collector):
    """Counts of ended workers, which the launchers keep in Redis; `counts` is by model and cause."""

    def __init__(self) -> None:
        self.counts: Mapping[tuple[str, str], int] = {}

    def collect(self) -> Iterable[CounterMetricFamily]:
        text = "Worker processes that ended and were restarted, by cause: hung, killed or exited"
        family = CounterMetricFamily("headrace_worker_exits", text, labels=["model", "cause"])
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        yield family


class Metrics:
    """The front end's metrics in a registry of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "headrace_api_requests",
            "Requests answered, by outcome",
            ["model", "route", "outcome"],
            registry=registry,
        )
        self.limited = Counter(
            "headrace_api_limited",
            "Requests refused by a limit, or let through uncounted",
            ["reason"],
            registry=registry,
        )
        self.usage_written = Counter(
            "headrace_api_usage_records", "Usage records that this process wrote", registry=registry
        )
        self.tokens = Counter(
            "headrace_api_tokens", "Tokens of answers sent to clients", ["model", "kind"], registry=registry
        )
        self.open_answers = Gauge(
            "headrace_api_open_streams", "Answers that clients are waiting for or reading", registry=registry
        )
        dropped = Gauge("headrace_api_log_lines_dropped", "Log lines that could not be written", registry=registry)
        dropped.set_function(lines_dropped)
        self.redis_up = Gauge("headrace_api_redis_up", "1 if Redis answered at this scrape", registry=registry)
        self.waiting = Gauge("headrace_queue_waiting", "Requests in the queue", ["model"], registry=registry)
        self.workers = Gauge("headrace_workers", "Workers, by state", ["model", "state"], registry=registry)
        self.worker_exits = WorkerExits()
        registry.register(self.worker_exits)
        self.held = Gauge("headrace_queue_held", "Requests held by workers", ["model"], registry=registry)
        self.oldest = Gauge(
            "headrace_queue_oldest_age_seconds", "Age of the oldest waiting request", ["model"], registry=registry
        )
        self.first_token = self._seconds(
            "time_to_first_token", "Time from a request's arrival to its first token", FIRST_TOKEN
        )
        self.between_tokens = self._seconds(
            "inter_token", "Time per token after the first, as read by the client", BETWEEN_TOKENS
        )
        self.whole_answer = self._seconds(
            "request", "Time from a request's arrival to the end of its answer", WHOLE_ANSWER
        )

    def _seconds(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        """Make a histogram of seconds per model."""
        name = f"headrace_api_{name}_seconds"
        return Histogram(name, text, ["model"], buckets=buckets, registry=self.registry)

    def show_workers(self, workers: Sequence[WorkerInfo]) -> None:
        self.workers.clear()
        for labels, count in Count((worker.model, worker.state) for worker in workers).items():
            self.workers.labels(*labels).set(count)

    def show_depth(self, model: str, depth: QueueDepth) -> None:
        self.waiting.labels(model).set(depth.waiting)
        self.held.labels(model).set(depth.held)
        self.oldest.labels(model).set(depth.oldest_age)


class Stopwatch:
    """Times one answer as its reader gets it, and summarises it for the request log.

    Args:
        started: when the request arrived, by time.perf_counter.

    Attributes:
        first_token: seconds from `started` to the first token.
        waited: seconds in the queue.
    """

    def __init__(self, metrics: Metrics, model: str, started: float) -> None:
        self._metrics = metrics
        self._model = model
        self._between = metrics.between_tokens.labels(model)
        self._started = started
        self._last: float | None = None
        self.first_token: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish = ""
        self.waited = 0.0
        self.ended = False

    async def watch(self, events: AsyncGenerator[TokenEvent | None]) -> AsyncGenerator[TokenEvent | None]:
        """Yield the events unchanged, and time each as it passes."""
        async with aclosing(events):
            async for event in events:
                if event is not None:
                    self.record(event)
                yield event

    def record(self, event: TokenEvent) -> None:
        if event.tokens:
            now = time.perf_counter()
            if self._last is None:
                self.first_token = now - self._started
                self._metrics.first_token.labels(self._model).observe(self.first_token)
            else:
                self._between.observe((now - self._last) / len(event.tokens))
            self._last = now
            self.completion_tokens += len(event.tokens)
            for token in event.tokens:
                if token.finish_reason is not None:
                    self.finish = token.finish_reason.value
        if event.terminal is not None:
            self._record_end(event)

    def summary(self) -> dict[str, object]:
        """Return the fields for the request log."""
        return {
            "queue_seconds": round(self.waited, 4) or None,
            "first_token_seconds": self.first_token and round(self.first_token, 4),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish": self.finish,
        }

    def _record_end(self, event: TokenEvent) -> None:
        assert event.terminal is not None
        self._metrics.whole_answer.labels(self._model).observe(time.perf_counter() - self._started)
        self.ended, self.waited = True, event.terminal.waited
        usage = event.terminal.usage
        self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        self._metrics.tokens.labels(self._model, "prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels(self._model, "completion").inc(usage.completion_tokens)
        if event.terminal.error is not None:
            self.finish = event.terminal.error.code
        elif not self.finish:
            self.finish = event.terminal.state.value
