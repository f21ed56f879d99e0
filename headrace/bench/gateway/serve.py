"""`headrace bench serve`: load on a running server, Headrace or any other OpenAI-compatible one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.bench.harness.load import Load, Target, drive, send
from headrace.bench.harness.report import Report
from headrace.bench.harness.timed_stream import Sample
from headrace.bench.harness.workload import WorkItem


async def measure(
    target: Target, items: Iterable[WorkItem], load: Load, console: Console, *, warmup: Sequence[WorkItem] = ()
) -> Report:
    """Send `warmup` one by one, without measuring it, then `items`, and return their report.

    Ctrl-C ends the run; the report then covers the requests finished so far. Raises ConfigError for an invalid url.
    """
    _ = target.endpoint  # fail early: an invalid url is the user's error, not the server's
    for item in warmup:
        await send(target, item, time.perf_counter())
    samples: list[Sample] = []
    tokens = 0
    interrupted = False
    with _progress(console) as progress:
        bar = progress.add_task(target.model, total=len(items) if isinstance(items, list) else None, speed="-")
        start = time.perf_counter()

        def on_sample(sample: Sample) -> None:
            nonlocal tokens
            samples.append(sample)
            tokens += sample.output_tokens
            progress.update(bar, advance=1, speed=f"{tokens / (time.perf_counter() - start):.0f}")

        try:
            await drive(target, items, load, on_sample)
        except asyncio.CancelledError:
            interrupted = True
    return Report.from_samples(samples, time.perf_counter() - start, interrupted=interrupted)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} tokens/s"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
