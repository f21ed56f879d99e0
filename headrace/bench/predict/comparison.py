"""`headrace bench predict`: models behind the queue against the same work without a server, in pairs."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import FullStack, full_stack
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.predict.callers import measure_rate, median_latency
from headrace.bench.predict.direct import rows
from headrace.bench.predict.minilm import minilm_onnx
from headrace.bench.predict.repository import ADDER, BATCHED, SINGLE, write_repository
from shared.runtime.sockets import free_port

LATENCY_CALLS = 300


@dataclass(frozen=True)
class Pair:
    """One pair.

    Attributes:
        served, direct: rows per second, of MiniLM behind the queue and of ONNX Runtime with the same batches.
        single: rows per second behind the queue without dynamic batching.
        batch: average number of rows of a batch.
        latency: median seconds of one request over gRPC to a model that adds.
        foreign: share of the cores that other processes used.
    """

    served: float
    direct: float
    single: float
    batch: float
    latency: float
    foreign: float


@dataclass(frozen=True)
class Prediction:
    """All pairs; the figures are medians over them."""

    pairs: list[Pair]

    @property
    def share(self) -> float:
        """Return what the queue leaves of the direct throughput."""
        return statistics.median(pair.served / pair.direct for pair in self.pairs)

    @property
    def gain(self) -> float:
        """Return how many times as fast dynamic batching is as one by one."""
        return statistics.median(pair.served / pair.single for pair in self.pairs)

    @property
    def latency(self) -> float:
        return statistics.median(pair.latency for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        figures = {"share": self.share, "gain": self.gain, "latency": self.latency}
        return {"pairs": [asdict(pair) for pair in self.pairs], **figures}

    def table(self) -> Table:
        table = Table("pair", "rows/s", "direct", "share", "one by one", "gain", "batch", "gRPC", "foreign load")
        for number, pair in enumerate(self.pairs, 1):
            table.add_row(
                *(str(number), f"{pair.served:.1f}", f"{pair.direct:.1f}", f"{pair.served / pair.direct:.1%}"),
                *(f"{pair.single:.1f}", f"{pair.served / pair.single:.2f}", f"{pair.batch:.1f}"),
                *(f"{pair.latency * 1000:.1f} ms", f"{pair.foreign:.1%}"),
            )
        table.add_section()
        table.add_row(
            *("median", "", "", f"{self.share:.1%}", "", f"{self.gain:.2f}", "", f"{self.latency * 1000:.1f} ms")
        )
        return table


def measure_prediction(
    callers: int, tokens: int, seconds: float, repeats: int, seed: int, console: Console
) -> Prediction:
    """Measure `repeats` pairs. Raises HeadraceError if a side fails."""
    graph = minilm_onnx()
    pairs = []
    for number in range(repeats):
        console.print(f"pair {number + 1} of {repeats}")
        with foreign_load() as during, _serving(graph) as (stack, grpc):
            sent = rows(tokens, callers, seed)
            rate = partial(measure_rate, stack.url, rows=sent, callers=callers, seconds=seconds)
            served = asyncio.run(rate(BATCHED))
            single = asyncio.run(rate(SINGLE))
            numbers = {"INPUT": np.ones((1, 4), np.float32)}
            latency = median_latency(grpc, ADDER, numbers, LATENCY_CALLS)
        batches = served.batches
        direct = run_in_subprocess(
            "headrace.bench.predict.direct", str(graph), tokens, json.dumps(batches), str(seconds), seed
        )
        batch = sum(size * count for size, count in batches.items()) / sum(batches.values())
        pairs.append(
            Pair(
                served=served.rows_per_second,
                direct=direct["rows_per_second"],
                single=single.rows_per_second,
                batch=batch,
                latency=latency,
                foreign=during.share,
            )
        )
    return Prediction(pairs)


@contextmanager
def _serving(graph: Path) -> Iterator[tuple[FullStack, str]]:
    """Run `headrace up` with the models that are measured, and yield it with the address of its gRPC port."""
    grpc = free_port("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        write_repository(Path(folder), graph)
        with full_stack(None, "--model-repository", folder, "--grpc-port", str(grpc)) as stack:
            yield stack, f"127.0.0.1:{grpc}"
