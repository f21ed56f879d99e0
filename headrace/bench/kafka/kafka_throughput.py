"""Tiny requests through Kafka, a worker on the scripted engine, and back: how fast, and none lost or told twice.

All that stands between a request's record and its result is measured; who sends and who reads shares the cores with
it.
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
from headrace.bench.harness.full_stack import spent
from headrace.bench.kafka.kafka_cluster import Installation, alive, installation, stop
from shared.models.model_store import SCRIPTED

SEATS, TOKENS = 256, 4
WARM = 200  # requests before those that count
REBALANCE = 5.0  # seconds between a second worker's coming and going
MOST_STEPS = 24  # of these: a mock's group hardly works meanwhile, and all are to be told at last
MANY = 3  # times as many requests where it comes and goes, so that it does so more than once
SAMPLE = 0.5  # seconds between looks at the worker's memory


@dataclass
class Flow:
    """One run: what was told of so many requests, and the worker's memory meanwhile.

    `repeated` counts results beyond the first; CPU is one core's microseconds for each request. `foreign` is not
    known where workers ended meanwhile.
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
class Flows:
    """All runs, and the medians over them; of lost and repeated results the sum."""

    name: str
    runs: list[Flow]

    def as_dict(self) -> dict[str, Any]:
        return {
            "runs": [asdict(run) for run in self.runs],
            "requests_per_second": statistics.median(run.rate for run in self.runs),
            "lost": sum(run.lost for run in self.runs),
            "repeated": sum(run.repeated for run in self.runs),
        }

    def table(self) -> Table:
        heads = ("requests/s", "lost", "twice", "rebalances", "worker MiB", "grew by", "CPU worker / Redis")
        table = Table(self.name, *heads, "others")
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
    """A second worker that comes and goes, a step every REBALANCE seconds, MOST_STEPS times."""

    def __init__(self, place: Installation) -> None:
        self._place = place
        self._worker: subprocess.Popen[bytes] | None = None
        self._next = time.perf_counter() + REBALANCE
        self.steps = 0

    def look(self) -> None:
        if self.steps == MOST_STEPS or time.perf_counter() < self._next:
            return
        self._next += REBALANCE
        self.steps += 1
        if self._worker is None:
            self._worker = _start(self._place)
        else:
            self.stop()

    def stop(self) -> None:
        if self._worker is not None:
            stop(self._worker)
            self._worker = None


def measure_kafka(requests: int, bootstrap: str, repeats: int, console: Console, *, churn: bool) -> Flows:
    """Raises HeadraceError where the worker dies.

    Args:
        bootstrap: brokers; empty: a mock.
        churn: have a second worker come and go.
    """
    runs = []
    if churn:
        requests *= MANY
    for number in range(repeats):
        console.print(f"run {number + 1} of {repeats}: {requests} requests{', with rebalances' if churn else ''}")
        with installation(bootstrap) as place:
            runs.append(_run(place, requests, churn))
    return Flows("rebalance" if churn else "kafka", runs)


def _run(place: Installation, requests: int, churn: bool) -> Flow:
    worker = _start(place)
    try:
        place.send(_tiny(f"warm-{number}" for number in range(WARM)))
        told: Counter[str] = Counter()
        place.read(told, WARM, lambda: alive(worker))
        return _flow(place, worker, requests, churn)
    finally:
        stop(worker)


def _start(place: Installation) -> subprocess.Popen[bytes]:
    return place.start_worker(model=SCRIPTED, max_num_seqs=SEATS)


def _tiny(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {name: {"prompt": name, "max_tokens": TOKENS} for name in names}


def _flow(place: Installation, worker: subprocess.Popen[bytes], requests: int, churn: bool) -> Flow:
    names = [f"r-{number}" for number in range(requests)]
    found, told, second = Flow(requests), Counter[str](), Churn(place)
    process = psutil.Process(worker.pid)
    before, sample_at = (spent(process), spent(place.redis)), 0.0

    def meanwhile() -> None:
        nonlocal sample_at
        alive(worker)
        if churn:
            second.look()
        if time.perf_counter() >= sample_at:
            sample_at = time.perf_counter() + SAMPLE
            found.rss_mib.append(process.memory_info().rss / 2**20)

    sending = threading.Thread(target=place.send, args=(_tiny(names),))
    with foreign_load() as during:
        begin = time.perf_counter()
        sending.start()
        found.seconds = place.read(told, WARM + requests, meanwhile) - begin
        after = (spent(process), spent(place.redis))
    sending.join()
    second.stop()
    found.worker_us, found.redis_us = (1e6 * (b - a) / requests for a, b in zip(before, after, strict=True))
    found.lost = sum(name not in told for name in names)
    found.repeated = sum(told[name] - 1 for name in names if name in told)
    found.rebalances, found.foreign = second.steps, during.share
    return found
