"""Runtimes that `headrace bench overhead` measures: how each runs alone, and how `headrace up` runs it.

Another runtime is one function, with its line in `RUNTIMES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from rich.console import Console

from headrace.bench.gateway.serve import measure
from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import served_name
from headrace.bench.harness.load import Load, Target
from headrace.bench.harness.report import EngineOnlyRun, require_complete
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.harness.workload import CONCURRENCY, make_mix, ttft_mix, warmup_mix
from headrace.bench.peers.peer_llamacpp import llama_server
from headrace.bench.peers.peer_vllm import MAX_MODEL_LEN
from headrace.bench.peers.peers import find_peers
from shared.errors import ConfigError
from shared.models.model_store import ModelRepository
from shared.settings import load


@dataclass(frozen=True)
class Subject:
    """One runtime in one pair.

    Attributes:
        model: the model's name for clients of `headrace up`.
        alone: measures the runtime without API and queue.
        options, settings: those of `headrace up`.
    """

    model: str
    alone: Callable[[], EngineOnlyRun]
    options: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@contextmanager
def native(model: str, seed: int, console: Console) -> Iterator[Subject]:
    """Headrace's engine, alone in a process of its own."""

    def alone() -> EngineOnlyRun:
        return EngineOnlyRun(**run_in_subprocess("headrace.bench.engine.engine_only", model, seed))

    yield Subject(served_name(model), alone)


@contextmanager
def upstream(model: str, seed: int, console: Console) -> Iterator[Subject]:
    """llama.cpp's server, which scripts/peers builds; both sides use the same process."""
    folder = ModelRepository(load({"model": model}).settings).folder()
    with llama_server(folder, CONCURRENCY, "--alias", model, "--no-cache-prompt", "--cache-ram", "0") as url:
        target = Target(url, model, extra={"ignore_eos": True})
        yield Subject(model, lambda: measure_server(target, seed, console), ("--upstream", f"{url}/v1"))


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
    yield Subject(served_name(model), alone, settings=settings)


def measure_server(target: Target, seed: int, console: Console) -> EngineOnlyRun:
    """Send the mix, and then single requests, to a server. Raises HeadraceError if a request fails."""
    asyncio.run(measure(target, warmup_mix(seed), Load(1), console))
    with foreign_load() as during:
        mix = asyncio.run(measure(target, make_mix(seed), Load(CONCURRENCY), console))
        singles = asyncio.run(measure(target, ttft_mix(seed), Load(1), console))
    for report in (mix, singles):
        require_complete(report)
    return EngineOnlyRun(mix.output_tokens, mix.output_tokens_per_second, singles.ttft.p50, during.share)


RUNTIMES: dict[str, Callable[[str, int, Console], AbstractContextManager[Subject]]] = {
    "native": native,
    "upstream": upstream,
    "vllm": vllm,
}
