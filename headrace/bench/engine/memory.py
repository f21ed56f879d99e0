"""What a waiting and a finished request take in Redis: measured by filling a server through Transport and TokenLog.

It knows no key: it compares the server's `used_memory` before and after, less what its clients and its append-only
file hold for a moment.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.table import Table

from headrace.doctor.redis_sizing import Linear, Sizing
from shared.backend import Backend
from shared.protocol import (
    FinishReason,
    Request,
    RequestState,
    SamplingParams,
    Terminal,
    Token,
    TokenEvent,
    Usage,
    new_job_id,
)
from shared.queue.interface import Delivery, Room
from shared.redis.embedded import EmbeddedServer
from shared.settings import load
from shared.token_log.interface import Append

MODEL = "memory"
WORKER = "bench"
BATCH = 100  # requests in hand at once
PROMPTS = (0, 1024, 8192)  # bytes
TOKENS = (0, 200, 400)
PASSING = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
TEXT = " river"  # of one token: six bytes, as common as any


@dataclass(frozen=True)
class Footprint:
    """Bytes of one request by its size, and what the formulas make of them.

    Args:
        waiting: (bytes of the prompt, bytes taken) of requests in the queue.
        finished: (tokens of the answer, bytes taken) of answers kept, one token in each append, the prompt gone.
        batched: bytes of a finished answer of 200 tokens in appends of ten.
    """

    server: str
    requests: int
    waiting: tuple[tuple[int, float], ...]
    finished: tuple[tuple[int, float], ...]
    batched: float

    @property
    def sizing(self) -> Sizing:
        return Sizing(waiting=Linear.through(self.waiting), finished=Linear.through(self.finished))

    def as_dict(self) -> dict[str, object]:
        sizing = self.sizing
        return {
            **self.__dict__,
            "formula": {
                "waiting": f"{sizing.waiting.base:.0f} + {sizing.waiting.each:.2f} * prompt bytes",
                "finished": f"{sizing.finished.base:.0f} + {sizing.finished.each:.2f} * tokens",
            },
        }

    def table(self) -> Table:
        table = Table("a request", "bytes in Redis", title=f"{self.requests} requests each, {self.server}")
        for size, taken in self.waiting:
            table.add_row(f"waiting, prompt of {size} bytes", f"{taken:.0f}")
        for tokens, taken in self.finished:
            table.add_row(f"finished, {tokens} tokens, one in each append", f"{taken:.0f}")
        table.add_row("finished, 200 tokens, ten in each append", f"{self.batched:.0f}")
        for name, formula in cast(dict[str, str], self.as_dict()["formula"]).items():
            table.add_row(f"formula, {name}", formula)
        return table


def measure_memory(requests: int) -> Footprint:
    """Fill an embedded server of its own with `requests` of each size."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder), appendfsync="no")
        server.start()
        try:
            return asyncio.run(_measure(server.url, requests))
        finally:
            server.stop()


async def _measure(url: str, requests: int) -> Footprint:
    settings = load(
        {"redis_url": url, "queue_depth": requests + 1, "tenant_queue_depth": requests + 1, "redis_timeout": 30}
    ).settings
    backend = Backend.open(settings)
    try:
        await backend.start()
        waiting = [(size, await _waiting(backend, requests, size)) for size in PROMPTS]
        finished = [(tokens, await _finished(backend, requests, tokens, 1)) for tokens in TOKENS]
        batched = await _finished(backend, requests, 200, 10)
        info = await backend.redis.info("server")
        name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
        return Footprint(name, requests, tuple(waiting), tuple(finished), batched)
    finally:
        await backend.close()


async def _waiting(backend: Backend, number: int, size: int) -> float:
    await _empty(backend)
    await _submit(backend, 1, size)  # what the first one makes for all
    before = await _used(backend)
    await _submit(backend, number, size)
    return (await _used(backend) - before) / number


async def _finished(backend: Backend, number: int, tokens: int, each: int) -> float:
    """Also the answer's entries in the queue are there before: what is left of them afterwards is measured too."""
    await _empty(backend)
    await _answer(backend, 1, tokens, each)
    before = await _used(backend)
    for done in range(0, number, BATCH):
        await _answer(backend, min(BATCH, number - done), tokens, each)
    return (await _used(backend) - before) / number


async def _empty(backend: Backend) -> None:
    """Now, not in the background: that would give memory back while it is measured."""
    await backend.redis.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]


async def _submit(backend: Backend, number: int, size: int) -> None:
    for _ in range(number):
        request = Request(
            id=new_job_id(),
            model=MODEL,
            prompt="x" * size,
            params=SamplingParams(max_tokens=200, n=1, seed=7),
            created_at=await backend.token_log.now(),
        )
        await backend.token_log.create(request)
        await backend.transport.publish(request)


async def _answer(backend: Backend, number: int, tokens: int, each: int) -> None:
    await _submit(backend, number, 1024)
    found = (await backend.transport.pull(MODEL, WORKER, Room.all(number))).found
    held = [item for item in found if isinstance(item, Delivery)]
    leases = await backend.token_log.acquire([item.request.id for item in held], WORKER)
    for event in _events(tokens, each):
        await backend.token_log.append([Append(lease, event, 256) for lease in leases if lease])
    await backend.transport.acknowledge([item.claim for item in held])


def _events(tokens: int, each: int) -> Iterable[TokenEvent]:
    for first in range(0, tokens, each):
        last = min(first + each, tokens)
        yield TokenEvent(
            first,
            tuple(
                Token(0, 10_000 + seq, TEXT, FinishReason.LENGTH if seq == tokens - 1 else None)
                for seq in range(first, last)
            ),
        )
    yield TokenEvent(tokens, (), Terminal(RequestState.COMPLETED, Usage(256, tokens)))


async def _used(backend: Backend) -> int:
    info = await backend.redis.info("memory")
    return int(info["used_memory"]) - sum(int(info[name]) for name in PASSING)
