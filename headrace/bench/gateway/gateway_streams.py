"""`headrace bench gateway --against vllm`: what a streamed token costs the API process, ours and vLLM's, in pairs.

Both serve the same model, and are sent the same chats for the same number of tokens, one server after the other.
The CPU is that of the process which speaks HTTP; what the engine computes is not in it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from headrace.bench.gateway.serve import measure
from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import served_name, spent, whole_path
from headrace.bench.harness.load import Load, Target
from headrace.bench.harness.report import Report, refuse_unfit
from headrace.bench.harness.server import running
from headrace.bench.harness.workload import Lengths, make_mix
from headrace.bench.peers.peer_vllm import ENVIRONMENT, LENGTH
from headrace.bench.peers.peers import find_peers
from shared.errors import ConfigError, HeadraceError
from shared.models.model_store import ModelRepository
from shared.redis.embedded import EmbeddedServer
from shared.runtime.sockets import free_port
from shared.settings import load

PEER = "vllm"
TOKENS = 64  # of each answer
LEAST = 4  # requests of a run, one after another where there is one at a time
START = 600.0  # seconds: vLLM compiles the model when it first meets it
SETTLING = 1.0  # seconds in which the last requests end and their usage is written


@dataclass(frozen=True)
class Server:
    """One side. `redis` is our queue's and log's."""

    target: Target
    api: psutil.Process
    redis: psutil.Process | None = None


@dataclass(frozen=True)
class Run:
    """One side of a pair. CPU is in seconds of one core, of the API process unless it is said.

    Attributes:
        request: for a chat of one token.
        token: for each token after the first.
        redis_token: Redis' for the same; 0 where there is none.
        rate: output tokens/s.
        events: with text, for each token: fewer than 1 where tokens share one.
    """

    request: float
    token: float
    redis_token: float
    rate: float
    events: float


@dataclass(frozen=True)
class Pair:
    concurrency: int
    ours: Run
    theirs: Run
    foreign: float

    @property
    def ratio(self) -> float:
        """Our API process' time for a token, as a share of theirs."""
        return self.ours.token / self.theirs.token


@dataclass(frozen=True)
class StreamCost:
    """All pairs, and the medians over those of each concurrency."""

    pairs: list[Pair]

    def medians(self) -> dict[int, dict[str, float]]:
        found: dict[str, Callable[[Pair], float]] = {
            "token": lambda pair: pair.ours.token,
            "token_vllm": lambda pair: pair.theirs.token,
            "ratio": lambda pair: pair.ratio,
            "redis_token": lambda pair: pair.ours.redis_token,
            "request": lambda pair: pair.ours.request,
            "request_vllm": lambda pair: pair.theirs.request,
        }
        return {
            concurrency: {
                name: statistics.median(of(pair) for pair in self.pairs if pair.concurrency == concurrency)
                for name, of in found.items()
            }
            for concurrency in dict.fromkeys(pair.concurrency for pair in self.pairs)
        }

    def as_dict(self) -> dict[str, Any]:
        return {"pairs": [asdict(pair) | {"ratio": pair.ratio} for pair in self.pairs], "medians": self.medians()}

    def table(self) -> Table:
        table = Table(
            "at a time", "CPU a token", "vLLM", "ratio", "Redis a token", "a request", "vLLM", "tokens/s", "others"
        )
        for pair in self.pairs:
            ours, theirs = pair.ours, pair.theirs
            table.add_row(
                str(pair.concurrency),
                *(_us(ours.token), _us(theirs.token), f"{pair.ratio:.2f}", _us(ours.redis_token)),
                *(_us(ours.request), _us(theirs.request)),
                *(f"{ours.rate:.0f}, {theirs.rate:.0f}", f"{pair.foreign:.1%}"),
            )
        table.add_section()
        for concurrency, found in self.medians().items():
            ratio = found.pop("ratio")
            token, peer, redis, *requests = map(_us, found.values())
            table.add_row(f"{concurrency}, median", token, peer, f"{ratio:.2f}", redis, *requests)
        return table


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs"


def measure_streams(
    model: str, against: str, concurrency: list[int], repeats: int, seed: int, console: Console
) -> StreamCost:
    """Raises ConfigError where vLLM is not set up, HeadraceError where a side fails, or made not what was asked."""
    peers, missing = find_peers(against)
    if missing or [peer.name for peer in peers] != [PEER]:
        raise ConfigError(f"--against is {PEER}, and scripts/peers {PEER} sets it up")
    seats = max(concurrency)
    with _ours(model, seats) as ours, _vllm(model, peers[0].python, seats) as theirs:
        pairs = []
        for number in range(repeats):
            for streams in concurrency:
                console.print(f"pair {number + 1} of {repeats}, {streams} at a time")
                pairs.append(_pair(ours, theirs, streams, seed, console, swapped=number % 2 == 1))
    return StreamCost(pairs)


@contextmanager
def _ours(model: str, seats: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "valkey")
        server.start()
        try:
            with whole_path(model, settings={"redis_url": server.local_url, "max_num_seqs": seats}) as path:
                yield Server(_target(path.url, model), path.process("api"), psutil.Process(server.pid))
        finally:
            server.stop()


@contextmanager
def _vllm(model: str, python: str, seats: int) -> Iterator[Server]:
    """vLLM's own server. The process started is the one that speaks HTTP; its engine is a child."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    folder = ModelRepository(load({"model": model}).settings).folder()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", served_name(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", str(LENGTH), "--max-num-seqs", str(seats)]
    command += ["--uvicorn-log-level", "warning"]  # our side logs no requests either
    with running(command, url, limit=START, environment=ENVIRONMENT) as process:
        yield Server(_target(url, model), process)


def _target(url: str, model: str) -> Target:
    return Target(url, served_name(model), extra={"ignore_eos": True})


def _pair(ours: Server, theirs: Server, streams: int, seed: int, console: Console, *, swapped: bool) -> Pair:
    runs = {}
    with foreign_load() as during:
        for server in (theirs, ours) if swapped else (ours, theirs):
            runs[server.target.url] = _run(server, streams, seed, console)
    return Pair(streams, runs[ours.target.url], runs[theirs.target.url], during.share)


def _run(server: Server, streams: int, seed: int, console: Console) -> Run:
    """The cost of a token is that of long answers less that of the same chats with an answer of one token."""
    count = max(streams, LEAST)
    _chats(server, streams, count, 1, seed, console)  # connections, prompts, caches
    short, request, redis_request = _chats(server, streams, count, 1, seed, console)
    long, whole, redis_whole = _chats(server, streams, count, TOKENS, seed, console)
    if (short.output_tokens, long.output_tokens) != (count, count * TOKENS):
        raise HeadraceError(f"not the work asked for: {long.output_tokens} tokens, not {count * TOKENS}")
    more = long.output_tokens - short.output_tokens
    return Run(
        request / count,
        (whole - request) / more,
        (redis_whole - redis_request) / more,
        long.output_tokens_per_second,
        long.events / long.output_tokens,
    )


def _chats(
    server: Server, streams: int, count: int, tokens: int, seed: int, console: Console
) -> tuple[Report, float, float]:
    """What came of them, and the seconds that API process and Redis computed meanwhile."""

    def now() -> tuple[float, float]:
        return spent(server.api), spent(server.redis) if server.redis else 0.0

    items = make_mix(seed, count, outputs=Lengths(tokens, tokens))
    before = now()
    report = asyncio.run(measure(server.target, items, Load(streams), console))
    time.sleep(SETTLING)
    after = now()
    refuse_unfit(report)
    return report, after[0] - before[0], after[1] - before[1]
