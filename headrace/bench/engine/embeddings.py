"""`headrace bench embeddings`: /v1/embeddings against transformers' forward pass of the same model, in pairs.

Headrace's side goes through HTTP, queue and token log, one request at a time; transformers runs in a process of its
own, which tokenizes, pads, computes, pools and normalizes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import full_stack, served_name
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.harness.workload import Lengths, make_mix
from shared.errors import HeadraceError
from shared.models.model_store import ModelRepository
from shared.settings import load

BATCH_SIZES = (1, 16, 128)  # inputs of a request
DURATION_S = 6.0  # of one measurement
TIMEOUT_S = 120.0  # of one request


@dataclass(frozen=True)
class Speed:
    """One side with one batch size.

    Attributes:
        inputs: inputs per second.
        tokens: tokens per second.
        work: tokens of one batch.
        foreign: share of the cores that other processes used.
    """

    inputs: float
    tokens: float
    work: int
    foreign: float


Side = dict[int, Speed]  # by batch size


@dataclass(frozen=True)
class Pair:
    ours: Side
    plain: Side

    def ratio(self, batch: int) -> float:
        return self.ours[batch].inputs / self.plain[batch].inputs


@dataclass(frozen=True)
class Embeddings:
    """All pairs. A ratio is the median over them."""

    pairs: list[Pair]

    def ratio(self, batch: int) -> float:
        return statistics.median(pair.ratio(batch) for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": [asdict(pair) for pair in self.pairs],
            "ratios": {batch: self.ratio(batch) for batch in self.pairs[0].ours},
        }

    def table(self) -> Table:
        table = Table(
            "pair", "batch", "inputs/s", "transformers", "ratio", "tokens/s", "transformers", "foreign load"
        )
        for number, pair in enumerate(self.pairs, 1):
            for batch, ours in pair.ours.items():
                plain = pair.plain[batch]
                table.add_row(
                    *(str(number), str(batch), f"{ours.inputs:.1f}", f"{plain.inputs:.1f}"),
                    *(f"{pair.ratio(batch):.2f}", f"{ours.tokens:.0f}", f"{plain.tokens:.0f}"),
                    f"{max(ours.foreign, plain.foreign):.1%}",
                )
        table.add_section()
        for batch in self.pairs[0].ours:
            table.add_row("median", str(batch), "", "", f"{self.ratio(batch):.2f}")
        return table


def measure_embeddings(model: str, prompts: str, repeats: int, seed: int, console: Console) -> Embeddings:
    """Measure `repeats` pairs. Raises HeadraceError if a side fails, or if the token counts differ."""
    folder = str(ModelRepository(load({"model": model}).settings).folder())
    pairs = []
    with full_stack(model) as stack, httpx.Client(base_url=stack.url, timeout=TIMEOUT_S) as http:
        sides: dict[str, Callable[[], Side]] = {
            "ours": lambda: _measure_headrace(http, served_name(model), prompts, seed),
            "plain": lambda: _measure_transformers(folder, prompts, seed),
        }
        for number in range(repeats):
            console.print(f"pair {number + 1} of {repeats}")
            found = {name: sides[name]() for name in (reversed(sides) if number % 2 else sides)}
            pairs.append(make_pair(found["ours"], found["plain"]))
    return Embeddings(pairs)


def make_pair(ours: Side, plain: Side) -> Pair:
    """Return a pair. Raises HeadraceError if the sides did not do the same work."""
    for batch, speed in ours.items():
        if speed.work != plain[batch].work:
            raise HeadraceError(
                f"the sides did not do the same work: {speed.work} tokens, transformers {plain[batch].work}"
            )
    return Pair(ours, plain)


def measure_speeds(embed: Callable[[list[str]], int], prompts: str, seed: int) -> Side:
    """Measure a function that embeds a batch and returns its token count. Raises ValueError for bad lengths."""
    return {
        batch: _measure_speed(
            embed, [item.prompt for item in make_mix(seed, batch, prompts=Lengths.parse(prompts))]
        )
        for batch in BATCH_SIZES
    }


def _measure_speed(embed: Callable[[list[str]], int], inputs: list[str]) -> Speed:
    """Measure one batch size. The first two calls are not counted."""
    embed(inputs)
    tokens = embed(inputs)
    with foreign_load() as during:
        begin, calls, seconds = time.perf_counter(), 0, 0.0
        while seconds < DURATION_S:  # at least once, however slow the machine
            embed(inputs)
            calls += 1
            seconds = time.perf_counter() - begin
    return Speed(calls * len(inputs) / seconds, calls * tokens / seconds, tokens, during.share)


def _measure_headrace(http: httpx.Client, model: str, prompts: str, seed: int) -> Side:
    def embed(inputs: list[str]) -> int:
        body = {"model": model, "input": inputs, "encoding_format": "base64"}  # as OpenAI's package does
        response = http.post("/v1/embeddings", json=body)
        if response.status_code != 200:
            raise HeadraceError(f"a request failed: {response.text[:200]}")
        return int(response.json()["usage"]["prompt_tokens"])

    return measure_speeds(embed, prompts, seed)


def _measure_transformers(folder: str, prompts: str, seed: int) -> Side:
    found = run_in_subprocess(
        "headrace.bench.engine.peer_embeddings", folder, prompts, seed
    )  # next to the idle Headrace server
    return {int(batch): Speed(**speed) for batch, speed in found.items()}
