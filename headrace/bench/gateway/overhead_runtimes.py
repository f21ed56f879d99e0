"""Runtimes that `headrace bench overhead` measures: how each runs alone, and how `headrace up` runs it.

Another runtime is one function, with its line in `RUNTIMES`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from rich.console import Console

from headrace.bench.gateway.serve import measure
from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import served_name
from headrace.bench.harness.load import Load, Target, send
from headrace.bench.harness.report import EngineOnlyRun, require_complete
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.harness.workload import CONCURRENCY, WorkItem, make_mix, ttft_mix, warmup_mix
from headrace.bench.peers.peer_llamacpp import llama_server
from headrace.bench.peers.peer_vllm import ENVIRONMENT, MAX_MODEL_LEN
from headrace.bench.peers.peers import find_peers
from shared.errors import ConfigError, HeadraceError
from shared.models.model_store import ModelRepository
from shared.settings import load
from workers.runtimes.upstream.body import GREEDY_TOP_K

EXTRA = {"ignore_eos": True}  # fields of each request, so that both sides produce the same number of tokens


@dataclass(frozen=True)
class Subject:
    """One runtime in one pair.

    Attributes:
        model: the model's name for clients of `headrace up`.
        alone: measures the runtime without API and queue; or the server to measure, while `headrace up` runs too.
        options, settings, variables: those of `headrace up`; see `full_stack`.
    """

    model: str
    alone: Callable[[], EngineOnlyRun] | Target
    options: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@contextmanager
def native(model: str, seed: int, console: Console) -> Iterator[Subject]:
    """Headrace's engine, alone in a process of its own."""

    def alone() -> EngineOnlyRun:
        return EngineOnlyRun(**run_in_subprocess("headrace.bench.engine.engine_only", model, seed))

    yield Subject(served_name(model), alone)


@contextmanager
def upstream(model: str, seed: int, console: Console) -> Iterator[Subject]:
    """llama.cpp's server, which scripts/peers builds; both sides use the same process, and choose tokens alike."""
    folder = ModelRepository(load({"model": model}).settings).folder()
    with llama_server(folder, CONCURRENCY, "--alias", model, "--no-cache-prompt", "--cache-ram", "0") as url:
        alone = Target(url, model, extra={**EXTRA, "top_k": GREEDY_TOP_K})
        yield Subject(model, alone, ("--upstream", f"{url}/v1"))


@contextmanager
def vllm(model: str, seed: int, console: Console) -> Iterator[Subject]:
    """vLLM, which scripts/peers installs: its own LLM class, alone in a process of its own."""
    peers, missing = find_peers("vllm")
    if missing:
        raise ConfigError("vLLM is not installed: run scripts/peers vllm")
    [peer] = peers
    folder = str(ModelRepository(load({"model": model}).settings).folder())

    def alone() -> EngineOnlyRun:
        return EngineOnlyRun(**run_in_subprocess(peer.module, folder, seed, CONCURRENCY, python=peer.python))

    settings = {
        "runtime": "vllm",
        "worker_python": peer.python,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": CONCURRENCY,
    }
    yield Subject(served_name(model), alone, settings=settings, variables=ENVIRONMENT)


def measure_servers(targets: Sequence[Target], seed: int, console: Console) -> list[EngineOnlyRun]:
    """Send the mix to each server, and then single requests to all in turn. Raises HeadraceError if one fails."""
    rates = []
    for target in targets:
        asyncio.run(measure(target, warmup_mix(seed), Load(1), console))
        with foreign_load() as during:
            mix = asyncio.run(measure(target, make_mix(seed), Load(CONCURRENCY), console))
        require_complete(mix)
        rates.append((mix.output_tokens, mix.output_tokens_per_second, during.share))
    with foreign_load() as during:
        singles = asyncio.run(send_in_turn(targets, ttft_mix(seed)))
    return [
        EngineOnlyRun(tokens, rate, waits, max(foreign, during.share))
        for (tokens, rate, foreign), waits in zip(rates, singles, strict=True)
    ]


async def send_in_turn(targets: Sequence[Target], items: Sequence[WorkItem]) -> list[list[float]]:
    """Send each item to every server, one request at a time. Return the times to the first token for each server.

    The machine's speed changes from minute to minute; requests in turn meet the same speed. Another server is the
    first with each item. Raises HeadraceError if a request fails.
    """
    waits: list[list[float]] = [[] for _ in targets]
    for number, item in enumerate(items):
        for place in range(len(targets)):
            index = (number + place) % len(targets)
            sample = await send(targets[index], item, time.perf_counter())
            if sample.error is not None:
                raise HeadraceError(f"a request failed, so the runs cannot be compared: {sample.error}")
            first = sample.arrivals[0] if sample.arrivals else sample.ended  # an answer may have no text
            waits[index].append(first - sample.scheduled)
    return waits


RUNTIMES: dict[str, Callable[[str, int, Console], AbstractContextManager[Subject]]] = {
    "native": native,
    "upstream": upstream,
    "vllm": vllm,
}
