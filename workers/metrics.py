"""Metrics of the workers of one process, by model; /metrics shows `registry`."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry

from shared.metrics import worker as declared
from shared.metrics.declaration import Declaration
from shared.metrics.gpu import GpuMetrics, Gpus
from shared.metrics.meter import Meter
from shared.metrics.series import Distribution, Value
from shared.models.startup_progress import PHASES, StartupProgress
from shared.protocol import PriorityClass, Usage
from shared.queue.interface import Delivery
from shared.runtime.logging import lines_dropped
from shared.settings import MetricsNames
from shared.token_log.interface import Lease
from workers.active_request import ActiveRequest, AppendTally
from workers.engine.stats import EngineStats, TierStats
from workers.engine_thread import EngineThread
from workers.request_series import OF_REQUEST, RequestSeries

Outcome = Literal["completed", "failed", "cancelled"]
ENDS = {"cancelled": "abort", "failed": "error"}  # vLLM's finish_reason of choices that an outcome cut off


class AdapterLevels(Protocol):
    """The LoRA adapters of a worker, as metrics show them; see `workers.lora.residents.Residents`."""

    events: Counter[str]

    @property
    def most(self) -> int: ...

    @property
    def num_loaded(self) -> int: ...

    def running(self) -> set[str]: ...

    def waiting(self) -> set[str]: ...


class WorkerMetrics:
    """Counts, times and levels of the workers of this process.

    The event loop writes the series of requests, each engine's thread those of its steps, and the levels are read
    from the engines when the metrics are asked for.

    Attributes:
        gpus: the GPUs of this machine.
    """

    def __init__(self, names: MetricsNames = "headrace") -> None:
        self.registry = CollectorRegistry()
        self.meter = Meter(self.registry, names)
        self.meter.before.append(self._read_engines)
        values, distributions = self.meter.values, self.meter.distributions
        self._requests = values(declared.REQUESTS)
        self._tokens = values(declared.REQUEST_TOKENS)
        self._choices = values(declared.CHOICES)
        self._of_request = [distributions(each) for each in OF_REQUEST]
        self._by_class: dict[tuple[str, PriorityClass], RequestSeries] = {}
        self._leases_lost = values(declared.LEASES_LOST)
        self._takeovers = values(declared.TAKEOVERS)
        self._fenced_writes = values(declared.FENCED_WRITES)
        self._dead_letters = values(declared.DEAD_LETTERS)
        self._canaries = values(declared.CANARIES)
        self._startup = values(declared.STARTUP)
        self._log_lines_dropped = values(declared.LOG_LINES_DROPPED)
        self._engines: dict[str, EngineThread] = {}
        self._levels = {each.name: values(each) for each in declared.OF_ENGINE if each.kind != "histogram"}
        self._steps = [
            distributions(each) for each in (declared.STEP_SECONDS, declared.BATCH_SIZE, declared.BATCH_TOKENS)
        ]
        self._adapters: dict[str, AdapterLevels] = {}
        self._of_adapters = {each.name: values(each) for each in declared.OF_ADAPTERS}
        self.gpus = Gpus()
        GpuMetrics(self.meter, self.gpus)

    # requests

    def count_start(self, active: ActiveRequest) -> None:
        """Count a run that begins, and give it the series of its class."""
        request = active.delivery.request
        active.series = self._series(request.model, request.priority)
        active.series.queue.observe(_waited(active.delivery, active.lease))
        if active.delivery.attempt > 1:
            self._takeovers.labels(request.model).inc()

    def count_appends(self, tally: AppendTally, now: float) -> None:
        """Count what was appended at `now`, by time.monotonic."""
        for active in tally.begun:
            self._count_first(active, now)
        for gap in tally.gaps:
            if gap.series is not None:
                gap.series.between.observe(gap.seconds / gap.tokens, gap.appends)
        for active, append in tally.ended:
            for token in append.event.tokens:
                if token.finish_reason is not None:
                    self._count_choice(active, token.finish_reason)
            if (terminal := append.event.terminal) is not None:
                self._count_end(active, "failed" if terminal.error else "completed", terminal.usage)

    def _count_first(self, active: ActiveRequest, now: float) -> None:
        active.first_token_at = now
        series = self._series(active.delivery.request.model, active.delivery.request.priority)
        series.prefill.observe(now - active.held_since)
        if active.lease.next_seq == 0:  # otherwise an earlier run has sent it
            series.first.observe(_waited(active.delivery, active.lease) + now - active.held_since)

    def count_cancellation(self, active: ActiveRequest) -> None:
        self._count_end(active, "cancelled", Usage(len(active.prompt), active.next_seq))

    def _count_choice(self, active: ActiveRequest, reason: str) -> None:
        request = active.delivery.request
        self._choices.labels(request.model, request.priority.value, str(reason)).inc()

    def _count_end(self, active: ActiveRequest, outcome: Outcome, usage: Usage) -> None:
        request, now = active.delivery.request, time.monotonic()
        series, labels = self._series(request.model, request.priority), (request.model, request.priority.value)
        self._requests.labels(*labels, outcome).inc()
        self._tokens.labels(*labels, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(*labels, "cached").inc(usage.cached_tokens)
        self._tokens.labels(*labels, "completion").inc(usage.completion_tokens)
        if outcome in ENDS:
            self._count_choice(active, ENDS[outcome])
        series.inference.observe(now - active.held_since)
        series.whole.observe(_waited(active.delivery, active.lease) + now - active.held_since)
        series.prompt_tokens.observe(usage.prompt_tokens)
        series.completion_tokens.observe(usage.completion_tokens)
        series.choices.observe(request.params.n)
        if request.params.max_tokens is not None:
            series.max_tokens.observe(request.params.max_tokens)
        if active.first_token_at is not None:
            decode, computed = now - active.first_token_at, active.next_seq - active.lease.next_seq
            series.decode.observe(decode)
            if computed > request.params.n:
                series.per_token.observe(decode * request.params.n / (computed - request.params.n))

    def _series(self, model: str, priority: PriorityClass) -> RequestSeries:
        """Return the histograms of a model and class, which are looked up once."""
        if (found := self._by_class.get((model, priority))) is None:
            found = RequestSeries(*(family.labels(model, priority.value) for family in self._of_request))
            self._by_class[model, priority] = found
        return found

    # faults

    def count_lease_lost(self, model: str) -> None:
        self._leases_lost.labels(model).inc()

    def count_fenced_write(self, model: str) -> None:
        self._fenced_writes.labels(model).inc()

    def count_dead_letter(self, model: str, reason: str) -> None:
        self._dead_letters.labels(model, reason).inc()

    def count_canary(self, outcome: Literal["completed", "failed"]) -> None:
        self._canaries.labels(outcome).inc()

    def show_startup(self, progress: StartupProgress) -> None:
        """Show the phases of the start that has just ended."""
        for phase in PHASES:
            self._startup.labels(phase).set(progress.seconds.get(phase, 0.0))
        self._startup.labels("total").set(progress.total())

    # engines

    def watch(self, model: str, engine: EngineThread) -> None:
        """Show the levels of an engine, and count its steps. It takes the place of another one of the model."""
        self._engines[model] = engine
        engine.on_step = partial(_count_step, [family.labels(model) for family in self._steps])

    def watch_adapters(self, model: str, adapters: AdapterLevels) -> None:
        """Show the LoRA adapters of a worker. They take the place of those of another one of the model."""
        self._adapters[model] = adapters

    def forget(self, model: str) -> None:
        """Remove the levels of a model that this process no longer has; its counts of requests stay."""
        self._engines.pop(model, None)
        self._adapters.pop(model, None)
        for levels in (*self._levels.values(), *self._of_adapters.values()):
            levels.remove(model)

    def _read_engines(self) -> None:
        self._log_lines_dropped.set(lines_dropped())
        for model, engine in list(self._engines.items()):
            stats = engine.stats
            self._level(declared.STEP_AGE, model).set(engine.step_age() or 0.0)
            for declaration, value in _levels(stats):
                self._level(declaration, model).set(value)
            for place, count in enumerate(stats.speculation.accepted):
                self._levels[declared.ACCEPTED_TOKENS.name].labels(model, str(place)).set(count)
            if stats.block_size:
                info = self._levels[declared.KV_INFO.name]
                info.labels(model, str(stats.block_size), str(stats.blocks_total)).set(1)

        for model, adapters in list(self._adapters.items()):
            self._read_adapters(model, adapters)

    def _read_adapters(self, model: str, adapters: AdapterLevels) -> None:
        loaded, loads, requests = (self._of_adapters[each.name] for each in declared.OF_ADAPTERS)
        loaded.labels(model).set(adapters.num_loaded)
        for outcome, number in adapters.events.items():
            loads.labels(model, outcome).set(number)
        names = (",".join(sorted(each)) for each in (adapters.waiting(), adapters.running()))
        requests.remove(model)
        requests.labels(model, str(adapters.most), *names).set(time.time())

    def _level(self, declaration: Declaration, model: str) -> Value:
        return self._levels[declaration.name].labels(model)


def _levels(stats: EngineStats) -> tuple[tuple[Declaration, float], ...]:
    return (
        (declared.RUNNING, stats.running),
        (declared.WAITING, stats.waiting),
        (declared.KV_USAGE, stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0),
        (declared.KV_BLOCKS, stats.blocks_total),
        (declared.KV_BLOCKS_USED, stats.blocks_used),
        (declared.PREEMPTIONS, stats.preemptions),
        (declared.PREFIX_QUERIES, stats.prefix_queries),
        (declared.PREFIX_HITS, stats.prefix_hits),
        (declared.DRAFTS, stats.speculation.drafts),
        (declared.DRAFT_TOKENS, stats.speculation.draft_tokens),
        *(_tier_levels(stats.tier) if stats.tier is not None else ()),
    )


def _tier_levels(stats: TierStats) -> tuple[tuple[Declaration, float], ...]:
    return (
        (declared.KV_TIER_QUERIES, stats.queries),
        (declared.KV_TIER_HITS, stats.hits),
        (declared.KV_TIER_LOADED_BYTES, stats.loaded_bytes),
        (declared.KV_TIER_SAVED_BYTES, stats.saved_bytes),
        (declared.KV_TIER_LOAD_SECONDS, stats.load_seconds),
        (declared.KV_TIER_DROPS, stats.drops),
        (declared.KV_TIER_DAMAGED, stats.damaged),
        (declared.KV_TIER_FAILURES, stats.failures),
        (declared.KV_TIER_PENDING, stats.pending),
    )


def _count_step(series: list[Distribution], took: float, stats: EngineStats) -> None:
    """Count a step that computed something."""
    seconds, size, tokens = series
    sequences = stats.running if stats.batch_size is None else stats.batch_size
    if sequences:
        seconds.observe(took)
        size.observe(sequences)
        if stats.batch_tokens:
            tokens.observe(stats.batch_tokens)


def _waited(delivery: Delivery, lease: Lease) -> float:
    """Return the seconds from submission to the lease."""
    return max(0.0, lease.acquired_at - delivery.request.created_at)
