"""`headrace bench memory`: memory in Redis of a waiting and of a finished request.

A server is filled through queue and token log. The figures are differences of the server's `used_memory`, without
the transient buffers of its clients and its append-only file.
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
BATCH_REQUESTS = 100  # answered at a time
PROMPT_BYTES = (0, 1024, 8192)
ANSWER_TOKENS = (0, 200, 400)
TRANSIENT_FIELDS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")
TEXT = " river"  # text of one token, with a typical length of six bytes


@dataclass(frozen=True)
class Footprint:
    """Memory of one request by its size, and the formulas fitted to it.

    Attributes:
        waiting: (prompt bytes, bytes in Redis) of requests in the queue.
        finished: (answer tokens, bytes in Redis) of stored answers with one token per append, without the prompt.
        batched: bytes in Redis of a stored answer of 200 tokens with ten tokens per append.
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
        table = Table("request", "bytes in Redis", title=f"{self.requests} requests each, {self.server}")
        for size, used in self.waiting:
            table.add_row(f"waiting, prompt of {size} bytes", f"{used:.0f}")
        for tokens, used in self.finished:
            table.add_row(f"finished, {tokens} tokens, one per append", f"{used:.0f}")
        table.add_row("finished, 200 tokens, ten per append", f"{self.batched:.0f}")
        for name, formula in cast(dict[str, str], self.as_dict()["formula"]).items():
            table.add_row(f"formula, {name}", formula)
        return table


def measure_memory(requests: int) -> Footprint:
    """Fill an embedded server with `requests` requests of each size, and measure its memory."""
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
        waiting = [(size, await _waiting(backend, requests, size)) for size in PROMPT_BYTES]
        finished = [(tokens, await _finished(backend, requests, tokens, 1)) for tokens in ANSWER_TOKENS]
        batched = await _finished(backend, requests, 200, 10)
        info = await backend.redis.info("server")
        name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
        return Footprint(name, requests, tuple(waiting), tuple(finished), batched)
    finally:
        await backend.close()


async def _waiting(backend: Backend, number: int, size: int) -> float:
    await _empty(backend)
    await _submit(backend, 1, size)  # creates the keys that all requests share
    before = await _used_bytes(backend)
    await _submit(backend, number, size)
    return (await _used_bytes(backend) - before) / number


async def _finished(backend: Backend, number: int, tokens: int, each: int) -> float:
    """Measure answers from before their submit, so that anything left in the queue counts, too."""
    await _empty(backend)
    await _answer(backend, 1, tokens, each)
    before = await _used_bytes(backend)
    for done in range(0, number, BATCH_REQUESTS):
        await _answer(backend, min(BATCH_REQUESTS, number - done), tokens, each)
    return (await _used_bytes(backend) - before) / number


async def _empty(backend: Backend) -> None:
    """Delete all keys synchronously; in the background, memory would be freed during the measurement."""
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


async def _used_bytes(backend: Backend) -> int:
    info = await backend.redis.info("memory")
    return int(info["used_memory"]) - sum(int(info[name]) for name in TRANSIENT_FIELDS)
