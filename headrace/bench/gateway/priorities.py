"""`headrace bench priorities`: how much saturating batch work slows interactive requests down.

The same interactive requests arrive at the same times, first alone and then under batch load, in pairs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.bench.gateway.serve import measure
from headrace.bench.harness.full_stack import full_stack, served_name
from headrace.bench.harness.load import Load, Target, drive
from headrace.bench.harness.report import Report, require_complete
from headrace.bench.harness.timed_stream import Sample
from headrace.bench.harness.workload import Lengths, WorkItem, make_mix, warmup_mix

ARRIVALS_PER_S = 0.8  # interactive requests
INTERACTIVE_REQUESTS = 40
ANSWER_LENGTHS = Lengths(8, 24)
BATCH_CLIENTS = 64  # twice the seats of the engine
SETTLE_S = 8.0  # from the first batch output until the batch work has taken all seats
POLL_S = 0.1

# Runs saturating batch work on a target, drawn from a seed; yields a function that counts its output tokens so far.
BatchLoad = Callable[[Target, int], contextlib.AbstractAsyncContextManager[Callable[[], int]]]


@dataclass(frozen=True)
class Pair:
    """Interactive time to the first token in seconds, and the batch work's output meanwhile in tokens/s."""

    alone_p50: float
    alone_p95: float
    loaded_p50: float
    loaded_p95: float
    batch_rate: float


@dataclass(frozen=True)
class Priorities:
    """All pairs. The ratio of the p95 is the median over them."""

    pairs: list[Pair]

    @property
    def ratio(self) -> float:
        return statistics.median(pair.loaded_p95 / pair.alone_p95 for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        return {"pairs": [asdict(pair) for pair in self.pairs], "p95_ratio": self.ratio}

    def table(self) -> Table:
        table = Table("pair", "alone p50 / p95", "under batch p50 / p95", "p95 ratio", "batch tokens/s")
        for number, pair in enumerate(self.pairs, 1):
            alone, loaded = (f"{a * 1000:.0f} / {b * 1000:.0f} ms" for a, b in _times(pair))
            ratio = f"{pair.loaded_p95 / pair.alone_p95:.2f}"
            table.add_row(str(number), alone, loaded, ratio, f"{pair.batch_rate:.0f}")
        table.add_section()
        table.add_row("median", "", "", f"{self.ratio:.2f}", "")
        return table


def _times(pair: Pair) -> tuple[tuple[float, float], tuple[float, float]]:
    return (pair.alone_p50, pair.alone_p95), (pair.loaded_p50, pair.loaded_p95)


def measure_priorities(
    model: str, repeats: int, seed: int, settings: dict[str, object], console: Console
) -> Priorities:
    """Measure `repeats` pairs. Raises HeadraceError if a request fails."""
    with full_stack(model, settings=settings) as stack:
        target = Target(stack.url, served_name(model), extra={"ignore_eos": True})
        asyncio.run(measure(target, warmup_mix(seed), Load(1), console))
        seeds = range(seed, seed + repeats)
        return Priorities([asyncio.run(measure_pair(target, each, _by_http, console)) for each in seeds])


async def measure_pair(target: Target, seed: int, batch_load: BatchLoad, console: Console) -> Pair:
    items = make_mix(seed, INTERACTIVE_REQUESTS, outputs=ANSWER_LENGTHS)
    alone = await _interactive(target, items, seed, console)
    async with batch_load(target, seed + 1) as output_tokens:
        while not output_tokens():  # noqa: ASYNC110  counted, not notified
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(SETTLE_S)
        before = output_tokens()
        loaded = await _interactive(target, items, seed, console)
        tokens = output_tokens() - before
    return Pair(alone.ttft.p50, alone.ttft.p95, loaded.ttft.p50, loaded.ttft.p95, tokens / loaded.seconds)


@contextlib.asynccontextmanager
async def _by_http(target: Target, seed: int) -> AsyncIterator[Callable[[], int]]:
    samples: list[Sample] = []
    batch = Target(target.url, target.model, extra={**target.extra, "priority": "batch"})
    work = (item for block in itertools.count(seed) for item in make_mix(block))
    loading = asyncio.create_task(drive(batch, work, Load(BATCH_CLIENTS), samples.append))
    try:
        yield lambda: sum(sample.output_tokens for sample in samples)
    finally:
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading


async def _interactive(target: Target, items: list[WorkItem], seed: int, console: Console) -> Report:
    report = await measure(target, items, Load(rate=ARRIVALS_PER_S, seed=seed), console)
    require_complete(report)
    return report
