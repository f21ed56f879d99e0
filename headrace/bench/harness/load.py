"""Load client for OpenAI-compatible servers, with a closed or an open loop."""

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

CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 65_536
MAX_IN_FLIGHT = 4096  # in an open loop; an arrival beyond it counts as an error and is never delayed

Api = Literal["chat", "completions"]


@dataclass(frozen=True)
class Endpoint:
    """Address that requests are sent to. `authority` is the Host header's value; `tls` is None for plain HTTP."""

    host: str
    port: int
    authority: str
    path: str
    tls: ssl.SSLContext | None


@dataclass(frozen=True)
class Target:
    """Server under load, and the form of its requests.

    Attributes:
        extra: fields added to each body, beyond OpenAI's.
        timeout: maximum seconds of one request.
        key: API key, if the server needs one.
    """

    url: str
    model: str
    api: Api = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0
    key: str = ""

    @cached_property
    def endpoint(self) -> Endpoint:
        """The parsed address. Raises ConfigError if the URL is not an http or https address."""
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(
                f"url must be an http or https address, got {self.url}: {error}", param="url"
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url must be an http or https address, got {self.url}", param="url")
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
        """Return the bytes of the HTTP request, which uses its own connection."""
        messages = [{"role": "user", "content": item.prompt}]
        prompt = {"messages": messages} if self.api == "chat" else {"prompt": item.prompt}
        fields = {
            "model": self.model,
            **prompt,
            "max_tokens": item.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        body = json.dumps(fields).encode()
        credentials = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {self.endpoint.path} HTTP/1.1\r\nhost: {self.endpoint.authority}\r\nconnection: close\r\n"
            f"{credentials}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True)
class Load:
    """Load pattern: `rate` requests per second in an open loop, or else `concurrency` clients in a closed loop.

    If `seconds` is set, no request begins later than that.
    """

    concurrency: int = 32
    rate: float | None = None
    seconds: float | None = None
    seed: int = 0


async def send(target: Target, item: WorkItem, scheduled: float) -> Sample:
    """Send one request. Failures of the server are recorded in the sample, never raised."""
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
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
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


async def drive(target: Target, items: Iterable[WorkItem], load: Load, on_sample: Callable[[Sample], None]) -> None:
    """Send `items` in the pattern of `load`, and call `on_sample` when a request has ended."""
    if load.rate is None:
        await _closed_loop(target, items, load, on_sample)
    else:
        await _open_loop(target, items, load, load.rate, on_sample)


async def _closed_loop(
    target: Target, items: Iterable[WorkItem], load: Load, on_sample: Callable[[Sample], None]
) -> None:
    todo = iter(items)
    deadline = _deadline(load)

    async def client() -> None:
        for item in todo:
            now = time.perf_counter()
            if now >= deadline:
                return
            on_sample(await send(target, item, now))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(load.concurrency):
            tasks.create_task(client())


async def _open_loop(
    target: Target, items: Iterable[WorkItem], load: Load, rate: float, on_sample: Callable[[Sample], None]
) -> None:
    """Send requests at the times of a Poisson process, however slow the server is.

    Latency counts from the scheduled arrival, so that a server that holds up the client cannot hide it.
    """
    in_flight: set[asyncio.Task[None]] = set()

    async def one(item: WorkItem, at: float) -> None:
        on_sample(await send(target, item, at))

    async with asyncio.TaskGroup() as tasks:
        async for item, at in _arrivals(items, rate, load):
            if len(in_flight) >= MAX_IN_FLIGHT:
                on_sample(Sample(at, error="too many in flight"))
                continue
            task = tasks.create_task(one(item, at))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)


async def _arrivals(items: Iterable[WorkItem], rate: float, load: Load) -> AsyncIterator[tuple[WorkItem, float]]:
    chance = random.Random(load.seed)  # noqa: S311  a benchmark must be repeatable
    at, deadline = time.perf_counter(), _deadline(load)
    for item in items:
        if at >= deadline:
            return
        await asyncio.sleep(at - time.perf_counter())
        yield item, at
        at += chance.expovariate(rate)


def _deadline(load: Load) -> float:
    return float("inf") if load.seconds is None else time.perf_counter() + load.seconds
