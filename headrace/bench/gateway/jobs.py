"""Light client that submits jobs at a rate over kept-alive connections, and measures the time until each 202.

It costs a tenth of what it measures, since on a small machine it shares the cores with the server.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from headrace.bench.harness.load import CONNECT_TIMEOUT_S, Target
from shared.errors import HeadraceError

PATH = "/v1/jobs"
CONNECTIONS = 64
ANSWER_TIMEOUT_S = 30.0
MAX_REFUSAL_BYTES = 200  # of a refusal's body in the error

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def submit_at_rate(target: Target, job: Mapping[str, Any], rate: float, count: int) -> list[float]:
    """Submit `count` jobs at the times of a Poisson process, and return the seconds until each 202.

    Latency counts from the scheduled arrival, even if the client was held up. Raises HeadraceError if a job is
    refused; TimeoutError or OSError if the server does not answer.
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
    """Sender of the same job again and again, over at most CONNECTIONS connections."""

    def __init__(self, target: Target, job: Mapping[str, Any]) -> None:
        self._target = target
        body = json.dumps(job).encode()
        credentials = f"authorization: Bearer {target.key}\r\n" if target.key else ""
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {target.endpoint.authority}\r\n{credentials}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._seats = asyncio.Semaphore(CONNECTIONS)
        self._opened: list[Connection] = []
        self._idle: list[Connection] = []

    async def send(self) -> None:
        async with self._seats, asyncio.timeout(ANSWER_TIMEOUT_S):
            connection = self._idle.pop() if self._idle else await self._connect()
            reader, writer = connection
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if b" 202 " not in head.partition(b"\r\n")[0]:
                raise HeadraceError(f"a job was refused: {body[:MAX_REFUSAL_BYTES]!r}")
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        to = self._target.endpoint
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await asyncio.open_connection(to.host, to.port, ssl=to.tls)
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        for _, writer in self._opened:
            writer.close()
