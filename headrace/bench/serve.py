"""`headrace bench serve`: load on a running server, ours or any OpenAI-compatible one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.bench.load import Sample, Target, closed_loop, open_loop, send
from headrace.bench.mix import WorkItem
from headrace.bench.report import Report


@dataclass(frozen=True)
class Load:
    """How the requests are sent: `rate` a second if given, else by `concurrency` clients in a closed loop."""

    concurrency: int = 32
    rate: float | None = None
    seed: int = 0
    warmup: int = 2


async def measure(target: Target, items: list[WorkItem], load: Load, console: Console) -> Report:
    """Run all of `items`; Ctrl-C ends early with what was measured so far."""
    target.address()
    for item in items[: load.warmup]:
        await send(target, item, time.perf_counter())
    samples: list[Sample] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} tokens/s"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(target.model, total=len(items), speed="-")
        start = time.perf_counter()

        def seen(sample: Sample) -> None:
            samples.append(sample)
            speed = sum(one.output_tokens for one in samples) / (time.perf_counter() - start)
            progress.update(bar, advance=1, speed=f"{speed:.0f}")

        try:
            if load.rate is None:
                await closed_loop(target, items, load.concurrency, seen)
            else:
                await open_loop(target, items, load.rate, load.seed, seen)
        except asyncio.CancelledError:
            console.print("stopped: these are the requests that had ended")
    return Report.of(samples, time.perf_counter() - start)
