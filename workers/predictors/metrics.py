"""Metrics of predictors under Triton's names."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.registry import Collector

from shared.repository.status import VersionStatistics
from workers.predictors.engine import PredictorEngine
from workers.predictors.statistics import FAILURE_REASONS, FIRST_RESPONSE_BUCKETS_MS, PARTS

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
COUNTS = {
    "nv_inference_request_success": "Number of successful inference requests",
    "nv_inference_request_failure": "Number of failed inference requests",
    "nv_inference_count": "Number of inferences performed (does not include cached requests)",
    "nv_inference_exec_count": "Number of model executions performed (does not include cached requests)",
    "nv_inference_request_duration_us": "Cumulative inference request duration in microseconds",
    "nv_inference_queue_duration_us": "Cumulative inference queuing duration in microseconds",
    "nv_inference_compute_input_duration_us": "Cumulative compute input duration in microseconds",
    "nv_inference_compute_infer_duration_us": "Cumulative compute inference duration in microseconds",
    "nv_inference_compute_output_duration_us": "Cumulative inference compute output duration in microseconds",
    "nv_cache_num_hits_per_model": "Number of cache hits per model",
    "nv_cache_num_misses_per_model": "Number of cache misses per model",
    "nv_cache_hit_duration_per_model": "Total cache hit duration per model, in microseconds",
    "nv_cache_miss_duration_per_model": "Total cache miss duration per model, in microseconds",
}
PENDING = "nv_inference_pending_request_count"
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)  # of Triton's summaries
FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"


class PredictorCollector(Collector):
    """Reads the statistics of engines when the metrics are asked for. Engines may be added from any thread.

    While an engine replaces another one of its model, the newest with a ready version is shown.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[PredictorEngine] = []

    def add(self, engine: PredictorEngine) -> None:
        """Show the versions of a model."""
        with self._lock:
            self._engines.append(engine)

    def remove(self, engine: PredictorEngine) -> None:
        """Show a model no longer."""
        with self._lock:
            self._engines.remove(engine)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect when it is built."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            engines = list({each.name: each for each in self._engines if each.versions}.values())
        # prometheus_client would add `_total` to the names of counters, which Triton's do not have
        counts = {name: Metric(name, text, "unknown") for name, text in COUNTS.items()}
        pending = Metric(PENDING, "Instantaneous number of pending requests awaiting execution per-model", "gauge")
        first = Metric(FIRST_RESPONSE, "Duration from request to first response in milliseconds", "histogram")
        summaries = {part: Metric(f"nv_inference_{part}_summary_us", _text(part), "summary") for part in PARTS}
        for engine in engines:
            statistics = engine.statistics()
            for version, found in statistics.items():
                labels = {"model": engine.name, "version": version}
                for name, more, value in _counts(found, cached=engine.spec.response_cache):
                    counts[name].add_sample(name, {**labels, **more}, value)
                pending.add_sample(PENDING, labels, found.pending)
            for version, recent in engine.recent().items():
                if version in statistics:  # otherwise it was loaded since
                    labels = {"model": engine.name, "version": version}
                    _add_summaries(summaries, labels, recent, statistics[version])
            for version, (buckets, total_ns) in engine.first_responses().items():
                _add_histogram(first, {"model": engine.name, "version": version}, buckets, total_ns)
        yield from (*counts.values(), pending, first, *summaries.values())


def _text(part: str) -> str:
    return f"Quantiles of the {part.replace('_', ' ')} duration of the last requests, in microseconds"


def _add_summaries(
    summaries: dict[str, Metric], labels: dict[str, str], recent: list[tuple[int, ...]], found: VersionStatistics
) -> None:
    totals = (found.success, found.queue, found.compute_input, found.compute_infer, found.compute_output)
    for index, (metric, total) in enumerate(zip(summaries.values(), totals, strict=True)):
        durations = sorted(each[index] for each in recent)
        for quantile in QUANTILES if durations else ():
            at = min(len(durations) - 1, int(quantile * len(durations)))
            metric.add_sample(metric.name, {**labels, "quantile": str(quantile)}, durations[at] // NS_PER_US)
        metric.add_sample(f"{metric.name}_count", labels, total.count)
        metric.add_sample(f"{metric.name}_sum", labels, total.ns // NS_PER_US)


def _counts(found: VersionStatistics, *, cached: bool) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the name, further labels and value of each count."""
    yield "nv_inference_request_success", {}, found.success.count
    for reason in FAILURE_REASONS:
        yield "nv_inference_request_failure", {"reason": reason}, found.failures.get(reason, 0)
    yield "nv_inference_count", {}, found.inference_count
    yield "nv_inference_exec_count", {}, found.execution_count
    durations = {
        "nv_inference_request_duration_us": found.success.ns + found.cache_miss.ns,
        "nv_inference_queue_duration_us": found.queue.ns,
        "nv_inference_compute_input_duration_us": found.compute_input.ns,
        "nv_inference_compute_infer_duration_us": found.compute_infer.ns,
        "nv_inference_compute_output_duration_us": found.compute_output.ns,
    }
    if cached:
        yield "nv_cache_num_hits_per_model", {}, found.cache_hit.count
        yield "nv_cache_num_misses_per_model", {}, found.cache_miss.count
        durations["nv_cache_hit_duration_per_model"] = found.cache_hit.ns
        durations["nv_cache_miss_duration_per_model"] = found.cache_miss.ns
    for name, ns in durations.items():
        yield name, {}, ns // NS_PER_US


def _add_histogram(metric: Metric, labels: dict[str, str], buckets: list[int], total_ns: int) -> None:
    bounds = [*map(str, FIRST_RESPONSE_BUCKETS_MS), "+Inf"]
    for bound, count in zip(bounds, accumulate(buckets), strict=True):
        metric.add_sample(f"{FIRST_RESPONSE}_bucket", {**labels, "le": bound}, count)
    metric.add_sample(f"{FIRST_RESPONSE}_count", labels, sum(buckets))
    metric.add_sample(f"{FIRST_RESPONSE}_sum", labels, total_ns // NS_PER_MS)
