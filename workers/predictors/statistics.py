"""Statistics of one version, with the meaning of Triton's statistics extension."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from shared.repository.status import BatchStatistics, Duration, VersionStatistics

FailureReason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
FAILURE_REASONS: tuple[FailureReason, ...] = get_args(FailureReason)
PARTS = ("request", "queue", "compute_input", "compute_infer", "compute_output")
MAX_RECENT = 1000  # requests whose durations are kept for quantiles
FIRST_RESPONSE_BUCKETS_MS = (100, 500, 2000, 5000)  # Triton's; and one without end


@dataclass(frozen=True)
class Times:
    """Durations of one execution, in nanoseconds."""

    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0


class Statistics:
    """Counts the requests and executions of one version; may be used from any thread."""

    def __init__(self, memory_bytes: int = 0) -> None:
        self._lock = threading.Lock()
        self._counts = VersionStatistics(memory_bytes=memory_bytes)
        self._batches: dict[int, BatchStatistics] = {}
        self._first_responses = [0] * (len(FIRST_RESPONSE_BUCKETS_MS) + 1)
        self._first_response_ns = 0
        self._recent: deque[tuple[int, ...]] = deque(maxlen=MAX_RECENT)

    def count_execution(self, batch_size: int, times: Times) -> None:
        """Count a successful execution of requests with `batch_size` inferences in all."""
        with self._lock:
            before = self._batches.get(batch_size, BatchStatistics(batch_size=batch_size))
            self._batches[batch_size] = BatchStatistics(batch_size=batch_size, **_added(before, times))
            self._change(
                last_inference=time.time_ns() // 1_000_000, execution_count=self._counts.execution_count + 1
            )

    def count_success(self, batch_size: int, total_ns: int, queue_ns: int, times: Times) -> None:
        """Count a request that was executed."""
        with self._lock:
            counts = self._counts
            self._recent.append(
                (total_ns, queue_ns, times.compute_input, times.compute_infer, times.compute_output)
            )
            self._change(
                inference_count=counts.inference_count + batch_size,
                success=counts.success.plus(total_ns),
                queue=counts.queue.plus(queue_ns),
                **_added(counts, times),
            )

    def count_hit(self, total_ns: int, lookup_ns: int) -> None:
        """Count a request whose response was in the cache."""
        with self._lock:
            counts = self._counts
            self._change(
                success=counts.success.plus(total_ns),
                queue=counts.queue.plus(max(0, total_ns - lookup_ns)),
                cache_hit=counts.cache_hit.plus(lookup_ns),
            )

    def count_miss(self, ns: int) -> None:
        """Count the look-up and the storing of a response that was not in the cache."""
        with self._lock:
            self._change(cache_miss=self._counts.cache_miss.plus(ns))

    def count_failure(self, reason: FailureReason, total_ns: int) -> None:
        with self._lock:
            failures = {**self._counts.failures, reason: self._counts.failures.get(reason, 0) + 1}
            self._change(fail=self._counts.fail.plus(total_ns), failures=failures)

    def count_first_response(self, ns: int) -> None:
        """Count the time until the first response of a request."""
        with self._lock:
            self._first_responses[bisect_left(FIRST_RESPONSE_BUCKETS_MS, ns / 1e6)] += 1
            self._first_response_ns += ns

    def read(self, pending: int) -> VersionStatistics:
        with self._lock:
            batches = tuple(self._batches[size] for size in sorted(self._batches))
            return msgspec.structs.replace(self._counts, batches=batches, pending=pending)

    def recent(self) -> list[tuple[int, ...]]:
        """Return the durations of PARTS of the last requests that were executed, in nanoseconds."""
        with self._lock:
            return list(self._recent)

    def first_responses(self) -> tuple[list[int], int]:
        """Return the counts by bucket, and the sum of all times in nanoseconds."""
        with self._lock:
            return list(self._first_responses), self._first_response_ns

    def _change(self, **fields: object) -> None:
        self._counts = msgspec.structs.replace(self._counts, **fields)


def _added(counts: VersionStatistics | BatchStatistics, times: Times) -> dict[str, Duration]:
    return {
        "compute_input": counts.compute_input.plus(times.compute_input),
        "compute_infer": counts.compute_infer.plus(times.compute_infer),
        "compute_output": counts.compute_output.plus(times.compute_output),
    }
