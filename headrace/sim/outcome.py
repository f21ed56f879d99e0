"""Figures of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.bench.harness.report import percentile
from headrace.sim.worker import Job


@dataclass(frozen=True)
class Sample:
    """The state at one time: workers that exist and those ready, requests that wait, and the age of the oldest."""

    at: float
    workers: int
    ready: int
    waiting: int
    oldest_age: float


@dataclass
class Outcome:
    """A run's requests and its samples. Times are in seconds.

    Attributes:
        waits: from a request's arrival until a worker took it.
        first_tokens, totals: from its arrival to its first token, and to its end.
        started: workers that were started.
        handed_over: answers that a removed worker left unfinished, which another one continued.
        worker_seconds: how long workers existed, with their starts.
    """

    arrived: int = 0
    started: int = 0
    handed_over: int = 0
    worker_seconds: float = 0.0
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, job: Job) -> None:
        """Count a request that has ended."""
        assert job.started is not None
        assert job.first_token is not None
        assert job.ended is not None
        at = job.arrival.at
        self.waits.append(job.started - at)
        self.first_tokens.append(job.first_token - at)
        self.totals.append(job.ended - at)

    def summary(self, ttft_target_s: float) -> dict[str, Any]:
        """Return the figures by name; `slo` is the share of first tokens within the target."""
        waits, first, totals = sorted(self.waits), sorted(self.first_tokens), sorted(self.totals)
        met = sum(value <= ttft_target_s for value in first)
        return {
            "requests": len(totals),
            "worker_hours": self.worker_seconds / 3600,
            "most_workers": max((sample.workers for sample in self.samples), default=0),
            "workers_started": self.started,
            "handed_over": self.handed_over,
            "wait_p50_s": percentile(waits, 0.5),
            "wait_p99_s": percentile(waits, 0.99),
            "first_token_p50_s": percentile(first, 0.5),
            "first_token_p99_s": percentile(first, 0.99),
            "total_p99_s": percentile(totals, 0.99),
            "queue_age_p99_s": percentile(sorted(sample.oldest_age for sample in self.samples), 0.99),
            "queue_age_max_s": max((sample.oldest_age for sample in self.samples), default=0.0),
            "slo": met / len(first) if first else 1.0,
        }
