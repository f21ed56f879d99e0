"""Prometheus metrics of the front end. Label values are bounded: names of known models, route templates."""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry

from shared.metrics import api as declared
from shared.metrics.meter import Meter
from shared.models.worker_registry import WorkerInfo
from shared.protocol import PriorityClass, TokenEvent
from shared.queue.interface import QueueDepth
from shared.runtime.logging import lines_dropped


class Metrics:
    """The front end's metrics in a registry of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        meter = Meter(registry)
        meter.before.append(self._read)
        self.requests = meter.values(declared.REQUESTS)
        self.refusals = meter.values(declared.REFUSALS)
        self.limited = meter.values(declared.LIMITED)
        self.duplicates = meter.values(declared.DUPLICATES)
        self.usage_written = meter.values(declared.USAGE_RECORDS)
        self.tokens = meter.values(declared.TOKENS)
        self.first_token = meter.distributions(declared.FIRST)
        self.between_tokens = meter.distributions(declared.BETWEEN)
        self.whole_answer = meter.distributions(declared.WHOLE)
        self.open_answers = meter.values(declared.OPEN_STREAMS)
        self.redis_up = meter.values(declared.REDIS_UP)
        self._log_lines_dropped = meter.values(declared.LOG_LINES_DROPPED)
        self._waiting = meter.values(declared.WAITING)
        self._waiting_tokens = meter.values(declared.WAITING_TOKENS)
        self._paused = meter.values(declared.PAUSED)
        self._held = meter.values(declared.HELD)
        self._oldest = meter.values(declared.OLDEST)
        self._wait_estimate = meter.values(declared.WAIT_ESTIMATE)
        self._of_queues = (
            *(self._waiting, self._waiting_tokens, self._paused),
            *(self._held, self._oldest, self._wait_estimate),
        )
        self._workers = meter.values(declared.WORKERS)
        self._worker_exits = meter.values(declared.WORKER_EXITS)

    def show_queues(self, depths: Mapping[str, QueueDepth]) -> None:
        """Show the queues of all models."""
        for family in self._of_queues:
            family.clear()
        for model, depth in depths.items():
            self._waiting.labels(model).set(depth.waiting)
            self._waiting_tokens.labels(model).set(depth.waiting_tokens)
            self._paused.labels(model).set(depth.paused)
            self._held.labels(model).set(depth.held)
            self._oldest.labels(model).set(depth.oldest_age)
            if depth.wait is not None:
                self._wait_estimate.labels(model).set(depth.wait)

    def forget_redis(self) -> None:
        """Show nothing that was read from Redis: what it was says nothing about the present."""
        for family in (*self._of_queues, self._workers, self._worker_exits):
            family.clear()

    def show_workers(self, workers: Sequence[WorkerInfo], exits: Mapping[tuple[str, str], int]) -> None:
        """Show the workers, and the counts of ended ones by model and cause."""
        self._workers.clear()
        for labels, count in Count((worker.model, worker.state) for worker in workers).items():
            self._workers.labels(*labels).set(count)
        self._worker_exits.clear()
        for (model, cause), count in exits.items():
            self._worker_exits.labels(model, cause).set(count)

    def _read(self) -> None:
        self._log_lines_dropped.set(lines_dropped())


class Stopwatch:
    """Times one answer as its reader gets it, and summarises it for the request log.

    Args:
        started: when the request arrived, by time.perf_counter.

    Attributes:
        first_token: seconds from `started` to the first token.
        waited: seconds in the queue.
        failure: code of the error that ended the answer.
    """

    def __init__(self, metrics: Metrics, model: str, priority: PriorityClass, started: float) -> None:
        self._metrics = metrics
        self._labels = model, priority.value
        self._between = metrics.between_tokens.labels(*self._labels)
        self._started = started
        self._last: float | None = None
        self.first_token: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish = ""
        self.failure = ""
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
                self._metrics.first_token.labels(*self._labels).observe(self.first_token)
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
        self._metrics.whole_answer.labels(*self._labels).observe(time.perf_counter() - self._started)
        self.ended, self.waited = True, event.terminal.waited
        usage = event.terminal.usage
        self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        self._metrics.tokens.labels(*self._labels, "prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels(*self._labels, "completion").inc(usage.completion_tokens)
        if event.terminal.error is not None:
            self.finish = self.failure = event.terminal.error.code
        elif not self.finish:
            self.finish = event.terminal.state.value
