"""Jobs sent to a server at a rate, over connections that are kept, and how long each one's 202 takes.

A client that costs a tenth of what it measures: on a small machine it shares the cores with the server. It does not
know what the times mean.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from headrace.bench.harness.load import CONNECT_LIMIT, Target
from shared.errors import HeadraceError

PATH = "/v1/jobs"
CONNECTIONS = 64
ANSWER_LIMIT = 30.0  # seconds
TOLD = 200  # bytes of a refusal

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def submit_at_rate(target: Target, job: Mapping[str, Any], rate: float, count: int) -> list[float]:
    """Poisson arrivals; seconds from each one's own time to its 202, whatever held the client up.

    Raises HeadraceError where one is refused; TimeoutError, OSError where the server does not answer.
    """
    sender = _Sender(target, job)
    chance = random.Random(0)  # noqa: S311  a benchmark must be repeatable
    latencies: list[float] = []

    async def one(at: float) -> None:
        await sender.send()
        latencies.append(time.perf_counter() - at)

    try:
        async with asyncio.TaskGroup() as tasks:
            at = time.perf_counter()
            for _ in range(count):
                await asyncio.sleep(at - time.perf_counter())
                tasks.create_task(one(at))
                at += chance.expovariate(rate)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        sender.close()
    return latencies


class _Sender:
    """Sends one job again and again, over at most CONNECTIONS connections."""

    def __init__(self, target: Target, job: Mapping[str, Any]) -> None:
        self._target = target
        body = json.dumps(job).encode()
        proof = f"authorization: Bearer {target.key}\r\n" if target.key else ""
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {target.endpoint.authority}\r\n{proof}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._seats = asyncio.Semaphore(CONNECTIONS)
        self._made: list[Connection] = []
        self._idle: list[Connection] = []

    async def send(self) -> None:
        async with self._seats, asyncio.timeout(ANSWER_LIMIT):
            connection = self._idle.pop() if self._idle else await self._connect()
            reader, writer = connection
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if b" 202 " not in head.partition(b"\r\n")[0]:
                raise HeadraceError(f"a job was refused: {body[:TOLD]!r}")
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        to = self._target.endpoint
        async with asyncio.timeout(CONNECT_LIMIT):
            made = await asyncio.open_connection(to.host, to.port, ssl=to.tls)
        self._made.append(made)
        return made

    def close(self) -> None:
        for _, writer in self._made:
            writer.close()
