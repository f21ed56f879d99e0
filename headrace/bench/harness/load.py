"""A load client for OpenAI-compatible servers: it keeps requests going, in a closed or in an open loop.

It does not know what the times mean that it collects.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

from headrace.bench.harness.timed_stream import AnswerStream, Sample, StreamFailed
from headrace.bench.harness.workload import WorkItem
from shared.errors import ConfigError

CONNECT_LIMIT = 10.0
READ_BYTES = 65_536
MOST_IN_FLIGHT = 4096  # of an open loop; an arrival beyond is an error, never a later arrival

Api = Literal["chat", "completions"]


@dataclass(frozen=True)
class Endpoint:
    """Where requests are sent. `authority` is the host header's value; `tls` is None for plain HTTP."""

    host: str
    port: int
    authority: str
    path: str
    tls: ssl.SSLContext | None


@dataclass(frozen=True)
class Target:
    """A server and how it is asked.

    Attributes:
        extra: goes into each body, for fields beyond OpenAI's.
        key: an API key, where the server asks for one.
        timeout: seconds that one request may take.
    """

    url: str
    model: str
    api: Api = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0
    key: str = ""

    @cached_property
    def endpoint(self) -> Endpoint:
        """Raises ConfigError."""
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{self.url} is no http address: {error}", param="url") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.url} is no http address", param="url")
        route = "/v1/chat/completions" if self.api == "chat" else "/v1/completions"
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return Endpoint(
            host=parts.hostname,
            port=port or (443 if tls else 80),
            authority=parts.netloc.rpartition("@")[2],
            path=parts.path.rstrip("/").removesuffix("/v1") + route,
            tls=tls,
        )

    def request(self, item: WorkItem) -> bytes:
        """The whole HTTP request, on a connection of its own."""
        messages = [{"role": "user", "content": item.prompt}]
        asked = {"messages": messages} if self.api == "chat" else {"prompt": item.prompt}
        fields = {
            "model": self.model,
            **asked,
            "max_tokens": item.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        body = json.dumps(fields).encode()
        proof = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {self.endpoint.path} HTTP/1.1\r\nhost: {self.endpoint.authority}\r\nconnection: close\r\n{proof}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True)
class Load:
    """How requests are sent: `rate` a second if given, else by `concurrency` clients in a closed loop.

    None is begun after `seconds`, where given.
    """

    concurrency: int = 32
    rate: float | None = None
    seconds: float | None = None
    seed: int = 0


async def send(target: Target, item: WorkItem, scheduled: float) -> Sample:
    """One request; never raises for what the server does."""
    sample = Sample(scheduled)
    try:
        async with asyncio.timeout(target.timeout):
            await _exchange(target, item, sample)
    except StreamFailed as error:
        sample.error = str(error)
    except TimeoutError:
        sample.error = "timeout"
    except OSError as error:
        sample.error = type(error).__name__
    sample.ended = time.perf_counter()
    return sample


async def _exchange(target: Target, item: WorkItem, sample: Sample) -> None:
    to = target.endpoint
    async with asyncio.timeout(CONNECT_LIMIT):
        reader, writer = await asyncio.open_connection(to.host, to.port, ssl=to.tls)
    try:
        writer.write(target.request(item))
        await writer.drain()
        stream = AnswerStream(sample)
        while not stream.complete:
            data = await reader.read(READ_BYTES)
            if not data:
                raise StreamFailed("connection cut")
            stream.feed(data)
    finally:
        writer.close()


async def drive(target: Target, items: Iterable[WorkItem], load: Load, seen: Callable[[Sample], None]) -> None:
    """Send `items` as `load` says, and tell `seen` of each that ended."""
    if load.rate is None:
        await _closed_loop(target, items, load, seen)
    else:
        await _open_loop(target, items, load, load.rate, seen)


async def _closed_loop(
    target: Target, items: Iterable[WorkItem], load: Load, seen: Callable[[Sample], None]
) -> None:
    todo = iter(items)
    end = _end(load)

    async def client() -> None:
        for item in todo:
            now = time.perf_counter()
            if now >= end:
                return
            seen(await send(target, item, now))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(load.concurrency):
            tasks.create_task(client())


async def _open_loop(
    target: Target, items: Iterable[WorkItem], load: Load, rate: float, seen: Callable[[Sample], None]
) -> None:
    """Poisson arrivals whatever the server does; latency counts from the arrival's own time, so that a server
    that holds the client up does not hide it.
    """
    in_flight: set[asyncio.Task[None]] = set()

    async def one(item: WorkItem, at: float) -> None:
        seen(await send(target, item, at))

    async with asyncio.TaskGroup() as tasks:
        async for item, at in _arrivals(items, rate, load):
            if len(in_flight) >= MOST_IN_FLIGHT:
                seen(Sample(at, error="too many in flight"))
                continue
            task = tasks.create_task(one(item, at))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)


async def _arrivals(items: Iterable[WorkItem], rate: float, load: Load) -> AsyncIterator[tuple[WorkItem, float]]:
    chance = random.Random(load.seed)  # noqa: S311  a benchmark must be repeatable
    at, end = time.perf_counter(), _end(load)
    for item in items:
        if at >= end:
            return
        await asyncio.sleep(at - time.perf_counter())
        yield item, at
        at += chance.expovariate(rate)


def _end(load: Load) -> float:
    return float("inf") if load.seconds is None else time.perf_counter() + load.seconds
