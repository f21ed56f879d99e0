"""`headrace bench gateway --against vllm`: CPU of the API process per streamed token, against vLLM's, in pairs.

Both serve the same model and get the same chats with the same number of tokens, one server after the other. The CPU
is that of the process that handles HTTP, without the engine's.
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
from headrace.bench.harness.full_stack import cpu_seconds, full_stack, served_name
from headrace.bench.harness.load import Load, Target
from headrace.bench.harness.report import Report, require_complete
from headrace.bench.harness.server import running_server
from headrace.bench.harness.workload import Lengths, make_mix
from headrace.bench.peers.peer_vllm import ENVIRONMENT, MAX_MODEL_LEN
from headrace.bench.peers.peers import find_peers
from shared.errors import ConfigError, HeadraceError
from shared.models.model_store import ModelRepository
from shared.redis.embedded import EmbeddedServer
from shared.runtime.sockets import free_port
from shared.settings import load

PEER = "vllm"
TOKENS = 64  # of each answer
MIN_REQUESTS = 4  # of a run, even if they run one at a time
START_TIMEOUT_S = 600.0  # vLLM compiles a model at its first start
SETTLE_S = 1.0  # in which the last requests end and their usage is written


@dataclass(frozen=True)
class Server:
    """Server under measurement. `redis` holds Headrace's queue and token log."""

    target: Target
    api: psutil.Process
    redis: psutil.Process | None = None


@dataclass(frozen=True)
class Run:
    """One side of a pair.

    Attributes:
        request: CPU seconds of the API process for a chat of one token.
        token: CPU seconds of the API process for each token after the first.
        redis_token: CPU seconds of Redis for each token after the first; 0 without Redis.
        rate: output tokens/s.
        events: events with text per token; less than 1 if tokens share an event.
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
        """CPU time per token of Headrace's API process, divided by vLLM's."""
        return self.ours.token / self.theirs.token


@dataclass(frozen=True)
class StreamCost:
    """All pairs, and the medians per concurrency."""

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
            *("at a time", "CPU per token", "vLLM", "ratio", "Redis per token"),
            *("CPU per request", "vLLM", "tokens/s", "foreign load"),
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
    """Measure all pairs.

    Raises ConfigError if vLLM is not installed, HeadraceError if a server fails or generates too few tokens.
    """
    peers, missing = find_peers(against)
    if missing or [peer.name for peer in peers] != [PEER]:
        raise ConfigError(f"--against must be {PEER}, installed with scripts/peers {PEER}")
    seats = max(concurrency)
    with _headrace(model, seats) as ours, _vllm(model, peers[0].python, seats) as theirs:
        pairs = []
        for number in range(repeats):
            for streams in concurrency:
                console.print(f"pair {number + 1} of {repeats}, {streams} at a time")
                pairs.append(_pair(ours, theirs, streams, seed, console, swapped=number % 2 == 1))
    return StreamCost(pairs)


@contextmanager
def _headrace(model: str, seats: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "valkey")
        server.start()
        try:
            with full_stack(model, settings={"redis_url": server.local_url, "max_num_seqs": seats}) as stack:
                yield Server(_target(stack.url, model), stack.process("api"), psutil.Process(server.pid))
        finally:
            server.stop()


@contextmanager
def _vllm(model: str, python: str, seats: int) -> Iterator[Server]:
    """Run vLLM's server. The process started is the one that handles HTTP; the engine is its child."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    folder = ModelRepository(load({"model": model}).settings).folder()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", served_name(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(seats)]
    command += ["--uvicorn-log-level", "warning"]  # Headrace's side does not log requests either
    with running_server(command, url, timeout=START_TIMEOUT_S, environment=ENVIRONMENT) as process:
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
    """Measure one side. The cost of a token is that of long answers minus that of the same chats with one token."""
    count = max(streams, MIN_REQUESTS)
    _run_chats(server, streams, count, 1, seed, console)  # warms up connections and caches
    short, request, redis_request = _run_chats(server, streams, count, 1, seed, console)
    long, whole, redis_whole = _run_chats(server, streams, count, TOKENS, seed, console)
    if (short.output_tokens, long.output_tokens) != (count, count * TOKENS):
        raise HeadraceError(f"expected {count * TOKENS} output tokens, got {long.output_tokens}")
    further = long.output_tokens - short.output_tokens
    return Run(
        request / count,
        (whole - request) / further,
        (redis_whole - redis_request) / further,
        long.output_tokens_per_second,
        long.events / long.output_tokens,
    )


def _run_chats(
    server: Server, streams: int, count: int, tokens: int, seed: int, console: Console
) -> tuple[Report, float, float]:
    """Run chats, and return their report and the CPU seconds of the API process and of Redis."""

    def now() -> tuple[float, float]:
        return cpu_seconds(server.api), cpu_seconds(server.redis) if server.redis else 0.0

    items = make_mix(seed, count, outputs=Lengths(tokens, tokens))
    before = now()
    report = asyncio.run(measure(server.target, items, Load(streams), console))
    time.sleep(SETTLE_S)
    after = now()
    require_complete(report)
    return report, after[0] - before[0], after[1] - before[1]
