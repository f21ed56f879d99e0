"""Throughput of tiny requests over Kafka on the scripted engine; lost and repeated results are counted.

It covers everything between a request's record and its result. The client shares the cores with the worker.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import cpu_seconds
from headrace.bench.kafka.kafka_cluster import Installation, require_running, running_installation, stop
from shared.models.model_store import SCRIPTED

SEATS, TOKENS = 256, 4
WARMUP_REQUESTS = 200  # not measured
CHURN_INTERVAL_S = 5.0  # between a second worker's start and stop
MAX_CHURN_STEPS = 24  # bounded, since a mock's group makes little progress during rebalances
CHURN_FACTOR = 3  # times as many requests with churn, so that there are several rebalances
MEMORY_INTERVAL_S = 0.5  # between samples of the worker's memory


@dataclass
class Run:
    """One run. `repeated` counts results beyond the first of a request; CPU is in microseconds per request.

    `foreign` is not valid if workers ended during the run.
    """

    requests: int
    lost: int = 0
    repeated: int = 0
    rebalances: int = 0
    seconds: float = 0.0
    worker_us: float = 0.0
    redis_us: float = 0.0
    foreign: float = 0.0
    rss_mib: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return (self.requests - self.lost) / self.seconds

    @property
    def growth(self) -> float:
        """MiB by which the worker's memory in the last quarter exceeds that in the second."""
        quarter = max(1, len(self.rss_mib) // 4)
        second, last = self.rss_mib[quarter : 2 * quarter] or self.rss_mib, self.rss_mib[-quarter:]
        return statistics.fmean(last) - statistics.fmean(second)


@dataclass(frozen=True)
class Throughput:
    """All runs. Figures are medians over them; lost and repeated results are summed."""

    name: str
    runs: list[Run]

    def as_dict(self) -> dict[str, Any]:
        return {
            "runs": [asdict(run) for run in self.runs],
            "requests_per_second": statistics.median(run.rate for run in self.runs),
            "lost": sum(run.lost for run in self.runs),
            "repeated": sum(run.repeated for run in self.runs),
        }

    def table(self) -> Table:
        heads = ("requests/s", "lost", "repeated", "rebalances", "worker MiB", "growth", "CPU worker / Redis")
        table = Table(self.name, *heads, "foreign load")
        for number, run in enumerate(self.runs, 1):
            table.add_row(
                str(number),
                f"{run.rate:,.0f}",
                str(run.lost),
                str(run.repeated),
                str(run.rebalances),
                f"{run.rss_mib[0]:.0f}–{max(run.rss_mib):.0f}",
                f"{run.growth:.1f}",
                f"{run.worker_us:.0f} / {run.redis_us:.0f} µs",
                "" if run.rebalances else f"{run.foreign:.1%}",
            )
        found = self.as_dict()
        table.add_section()
        median = f"{found['requests_per_second']:,.0f}"
        table.add_row("median, sum", median, str(found["lost"]), str(found["repeated"]), "", "", "", "", "")
        return table


class Churn:
    """Second worker that is started and stopped in turn, a step every CHURN_INTERVAL_S, MAX_CHURN_STEPS times."""

    def __init__(self, installation: Installation) -> None:
        self._place = installation
        self._worker: subprocess.Popen[bytes] | None = None
        self._next = time.perf_counter() + CHURN_INTERVAL_S
        self.steps = 0

    def step_if_due(self) -> None:
        if self.steps == MAX_CHURN_STEPS or time.perf_counter() < self._next:
            return
        self._next += CHURN_INTERVAL_S
        self.steps += 1
        if self._worker is None:
            self._worker = _start(self._place)
        else:
            self.stop()

    def stop(self) -> None:
        if self._worker is not None:
            stop(self._worker)
            self._worker = None


def measure_kafka(requests: int, bootstrap: str, repeats: int, console: Console, *, churn: bool) -> Throughput:
    """Measure `repeats` runs. Raises HeadraceError if the worker ends.

    Args:
        bootstrap: addresses of the brokers; "" for a mock.
        churn: start and stop a second worker during the run.
    """
    runs = []
    if churn:
        requests *= CHURN_FACTOR
    for number in range(repeats):
        console.print(f"run {number + 1} of {repeats}: {requests} requests{', with rebalances' if churn else ''}")
        with running_installation(bootstrap) as installation:
            runs.append(_run(installation, requests, churn))
    return Throughput("rebalance" if churn else "kafka", runs)


def _run(installation: Installation, requests: int, churn: bool) -> Run:
    worker = _start(installation)
    try:
        installation.send(_tiny_requests(f"warm-{number}" for number in range(WARMUP_REQUESTS)))
        counts: Counter[str] = Counter()
        installation.read(counts, WARMUP_REQUESTS, lambda: require_running(worker))
        return _measure(installation, worker, requests, churn)
    finally:
        stop(worker)


def _start(installation: Installation) -> subprocess.Popen[bytes]:
    return installation.start_worker(model=SCRIPTED, max_num_seqs=SEATS)


def _tiny_requests(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {name: {"prompt": name, "max_tokens": TOKENS} for name in names}


def _measure(installation: Installation, worker: subprocess.Popen[bytes], requests: int, churn: bool) -> Run:
    names = [f"r-{number}" for number in range(requests)]
    found, counts, second = Run(requests), Counter[str](), Churn(installation)
    process = psutil.Process(worker.pid)
    before, sample_at = (cpu_seconds(process), cpu_seconds(installation.redis)), 0.0

    def meanwhile() -> None:
        nonlocal sample_at
        require_running(worker)
        if churn:
            second.step_if_due()
        if time.perf_counter() >= sample_at:
            sample_at = time.perf_counter() + MEMORY_INTERVAL_S
            found.rss_mib.append(process.memory_info().rss / 2**20)

    sending = threading.Thread(target=installation.send, args=(_tiny_requests(names),))
    with foreign_load() as during:
        begin = time.perf_counter()
        sending.start()
        found.seconds = installation.read(counts, WARMUP_REQUESTS + requests, meanwhile) - begin
        after = (cpu_seconds(process), cpu_seconds(installation.redis))
    sending.join()
    second.stop()
    found.worker_us, found.redis_us = (1e6 * (b - a) / requests for a, b in zip(before, after, strict=True))
    found.lost = sum(name not in counts for name in names)
    found.repeated = sum(counts[name] - 1 for name in names if name in counts)
    found.rebalances, found.foreign = second.steps, during.share
    return found
