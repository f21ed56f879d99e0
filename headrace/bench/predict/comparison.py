"""`headrace bench predict`: models behind the queue against the same work without a server, in pairs."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import FullStack, full_stack
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.predict.callers import Arrays, Served, measure_rate, median_latency
from headrace.bench.predict.direct import rows
from headrace.bench.predict.minilm import minilm_onnx
from headrace.bench.predict.repository import ADDER, DENSE, MINILM, SINGLE, WIDTH, write_repository
from shared.runtime.sockets import free_port

LATENCY_CALLS = 300


@dataclass(frozen=True)
class Rates:
    """Rows per second of a model behind the queue, with dynamic batching and one by one."""

    batched: float
    single: float

    @property
    def gain(self) -> float:
        return self.batched / self.single


@dataclass(frozen=True)
class Pair:
    """One pair.

    Attributes:
        minilm, dense: of each model; the dense one does little more for a batch than for one row.
        direct: rows per second of MiniLM in ONNX Runtime without a server, with the same batches.
        batch: average number of rows of a batch of MiniLM.
        latency: median seconds of one request over gRPC to a model that adds.
        foreign: share of the cores that other processes used.
    """

    minilm: Rates
    dense: Rates
    direct: float
    batch: float
    latency: float
    foreign: float

    @property
    def share(self) -> float:
        """Return what the queue leaves of the direct throughput."""
        return self.minilm.batched / self.direct


@dataclass(frozen=True)
class Prediction:
    """All pairs; the figures are medians over them."""

    pairs: list[Pair]

    def medians(self) -> dict[str, float]:
        figures: dict[str, Callable[[Pair], float]] = {
            "share": lambda pair: pair.share,
            "minilm_gain": lambda pair: pair.minilm.gain,
            "dense_gain": lambda pair: pair.dense.gain,
            "latency": lambda pair: pair.latency,
        }
        return {name: statistics.median(map(figure, self.pairs)) for name, figure in figures.items()}

    def as_dict(self) -> dict[str, Any]:
        return {"pairs": [asdict(pair) for pair in self.pairs], **self.medians()}

    def table(self) -> Table:
        table = Table(
            "pair", "MiniLM, rows/s", "direct", "share", "batch", "gain", "dense, gain", "gRPC", "foreign load"
        )
        for number, pair in enumerate(self.pairs, 1):
            table.add_row(
                *(str(number), f"{pair.minilm.batched:.1f}", f"{pair.direct:.1f}", f"{pair.share:.1%}"),
                *(f"{pair.batch:.1f}", f"{pair.minilm.gain:.2f}", f"{pair.dense.gain:.2f}"),
                *(f"{pair.latency * 1000:.1f} ms", f"{pair.foreign:.1%}"),
            )
        found = self.medians()
        table.add_section()
        table.add_row(
            *("median", "", "", f"{found['share']:.1%}", "", f"{found['minilm_gain']:.2f}"),
            *(f"{found['dense_gain']:.2f}", f"{found['latency'] * 1000:.1f} ms"),
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
        pairs.append(_measure_pair(graph, callers, tokens, seconds, seed))
    return Prediction(pairs)


def _measure_pair(graph: Path, callers: int, tokens: int, seconds: float, seed: int) -> Pair:
    numbers = np.random.default_rng(seed).standard_normal((callers, WIDTH), np.float32)
    with _serving(graph) as (stack, grpc), foreign_load() as during:

        def rate(model: str, sent: Arrays) -> Served:
            return asyncio.run(measure_rate(stack.url, model, sent, callers, seconds))

        texts, dense = rows(tokens, callers, seed), {"INPUT": numbers}
        served = rate(MINILM, texts)
        minilm = Rates(served.rows_per_second, rate(MINILM + SINGLE, texts).rows_per_second)
        wide = Rates(rate(DENSE, dense).rows_per_second, rate(DENSE + SINGLE, dense).rows_per_second)
        latency = median_latency(grpc, ADDER, {"INPUT": numbers[:, :4]}, LATENCY_CALLS)
    batches = served.batches
    direct = run_in_subprocess(
        "headrace.bench.predict.direct", str(graph), tokens, json.dumps(batches), str(seconds), seed
    )
    batch = sum(size * count for size, count in batches.items()) / sum(batches.values())
    return Pair(minilm, wide, direct["rows_per_second"], batch, latency, during.share)


@contextmanager
def _serving(graph: Path) -> Iterator[tuple[FullStack, str]]:
    """Run `headrace up` with the models that are measured, and yield it with the address of its gRPC port."""
    grpc = free_port("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        write_repository(Path(folder), graph)
        with full_stack(None, "--model-repository", folder, "--grpc-port", str(grpc)) as stack:
            yield stack, f"127.0.0.1:{grpc}"
