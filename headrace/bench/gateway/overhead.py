"""`headrace bench overhead`: the same work on a runtime alone and through the full stack, in pairs.

The runtime alone gets the concurrency of the clients; the full stack is `headrace up` with a fresh data folder.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.bench.gateway.overhead_runtimes import EXTRA, RUNTIMES, Subject, measure_servers
from headrace.bench.harness.cpu_contention import MAX_FOREIGN_SHARE
from headrace.bench.harness.full_stack import full_stack
from headrace.bench.harness.load import Target
from shared.errors import HeadraceError
from workers.startup.openmp_env import spin_briefly


@dataclass(frozen=True)
class Pair:
    """One run of each side. Rates are in output tokens/s, times in seconds; `foreign` is the larger of both.

    `added_ttft` is the median over the single requests, each compared with the same request on the other side.
    """

    bare_rate: float
    queue_rate: float
    bare_ttft: float
    queue_ttft: float
    added_ttft: float
    api_rss_mib: float
    foreign: float


@dataclass(frozen=True)
class Overhead:
    """All pairs, and the medians over them. No pair is left out, so that the figures cannot be picked."""

    pairs: list[Pair]

    @property
    def rate_ratio(self) -> float:
        return statistics.median(pair.queue_rate / pair.bare_rate for pair in self.pairs)

    @property
    def added_ttft(self) -> float:
        return statistics.median(pair.added_ttft for pair in self.pairs)

    @property
    def api_rss_mib(self) -> float:
        return statistics.median(pair.api_rss_mib for pair in self.pairs)

    @property
    def disturbed(self) -> str:
        """Reason why the figures are not reliable, or "": an engine that shares its cores slows down many times."""
        shares = [pair.foreign for pair in self.pairs if pair.foreign > MAX_FOREIGN_SHARE]
        if not shares:
            return ""
        return (
            f"in {len(shares)} of {len(self.pairs)} pairs, other processes used the cores (up to {max(shares):.0%})"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": [asdict(pair) for pair in self.pairs],
            "rate_ratio": self.rate_ratio,
            "added_ttft": self.added_ttft,
            "api_rss_mib": self.api_rss_mib,
            "disturbed": self.disturbed,
        }

    def table(self) -> Table:
        table = Table(
            "pair",
            "engine tokens/s",
            "queue tokens/s",
            "ratio",
            "engine TTFT",
            "queue TTFT",
            "added",
            "API MiB",
            "foreign load",
        )
        for number, pair in enumerate(self.pairs, 1):
            table.add_row(
                str(number),
                f"{pair.bare_rate:.1f}",
                f"{pair.queue_rate:.1f}",
                f"{pair.queue_rate / pair.bare_rate:.3f}",
                f"{pair.bare_ttft * 1000:.1f} ms",
                f"{pair.queue_ttft * 1000:.1f} ms",
                f"{pair.added_ttft * 1000:.1f} ms",
                f"{pair.api_rss_mib:.0f}",
                f"{pair.foreign:.1%}",
            )
        table.add_section()
        table.add_row(
            "median", "", "", f"{self.rate_ratio:.3f}", "", "", f"{self.added_ttft * 1000:.1f} ms",
            f"{self.api_rss_mib:.0f}", "",
        )  # fmt: skip
        return table


def measure_overhead(model: str, runtime: str, repeats: int, seed: int, console: Console) -> Overhead:
    """Measure `repeats` pairs; the other side is first in each. Raises HeadraceError if a side fails."""
    spin_briefly()  # as in a worker; both sides inherit it
    pairs = []
    for number in range(repeats):
        with RUNTIMES[runtime](model, seed, console) as subject:
            console.print(f"pair {number + 1} of {repeats}")
            pairs.append(measure_pair(subject, model, seed, console, queue_first=number % 2 == 1))
    return Overhead(pairs)


def measure_pair(subject: Subject, model: str, seed: int, console: Console, *, queue_first: bool) -> Pair:
    """Measure one pair. Raises HeadraceError if a side does not start, a request fails, or the sides differ."""
    alone = subject.alone
    before = alone() if not isinstance(alone, Target) and not queue_first else None
    with full_stack(model, *subject.options, settings=subject.settings, variables=subject.variables) as stack:
        rss = stack.rss_mib("api")
        queue = Target(stack.url, subject.model, extra=EXTRA)
        sides = [queue, alone] if isinstance(alone, Target) else [queue]
        runs = measure_servers(sides if queue_first else sides[::-1], seed, console)
    if not isinstance(alone, Target):
        runs.insert(int(queue_first), before or alone())
    full, bare = runs if queue_first else runs[::-1]
    if full.tokens != bare.tokens:
        raise HeadraceError(
            f"the sides did not do the same work: {bare.tokens} tokens on the runtime alone, {full.tokens} "
            "through the queue"
        )
    added = statistics.median(queued - direct for direct, queued in zip(bare.waits, full.waits, strict=True))
    return Pair(bare.rate, full.rate, bare.ttft, full.ttft, added, rss, max(bare.foreign, full.foreign))
