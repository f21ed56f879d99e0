"""A load client for OpenAI-compatible servers: it keeps requests going and notes when each token arrived.

It parses HTTP with httptools, since on a small machine a heavier client would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

from headrace.bench.mix import WorkItem
from shared.errors import ConfigError

LIMIT = 600.0  # seconds that one request may take
CONNECT_LIMIT = 10.0
READ_BYTES = 65_536
MOST_FRAME = 2**20  # bytes of one server-sent event


@dataclass(frozen=True)
class Target:
    """A server and how it is asked; `extra` goes into each body, for fields beyond OpenAI's."""

    url: str
    model: str
    extra: dict[str, Any] = field(default_factory=dict)

    def address(self) -> tuple[str, int, ssl.SSLContext | None, str]:
        """Host, port, TLS and path of chat completions. Raises ConfigError."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.url} is no http address")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        return parts.hostname, parts.port or (443 if tls else 80), tls, path

    def body(self, item: WorkItem) -> bytes:
        return json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": item.prompt}],
                "max_tokens": item.output_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.extra,
            }
        ).encode()


@dataclass
class Sample:
    """What one request gave; times by time.perf_counter. `scheduled` is when it should have been sent."""

    scheduled: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.scheduled

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


class StreamFailed(Exception):
    """The server said no, or the stream broke off; the message is the kind of error."""


class _Stream:
    """One response: the callbacks of httptools, and the events found in its body."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._buffer = b""
        self._body = b""
        self.parser = httptools.HttpResponseParser(self)
        self.complete = False
        self.done = False

    def on_body(self, data: bytes) -> None:
        if self.parser.get_status_code() != 200:
            self._body = (self._body + data)[:MOST_FRAME]
            return
        *frames, self._buffer = (self._buffer + data).split(b"\n\n")
        if len(self._buffer) > MOST_FRAME:
            raise StreamFailed("oversized event")
        now = time.perf_counter()
        for frame in frames:
            for line in frame.split(b"\n"):
                if line.startswith(b"data:"):
                    self._event(line[5:].strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise StreamFailed(f"stream error {chunk['error'].get('code') or ''}".strip())
        if usage := chunk.get("usage"):
            self._sample.output_tokens = usage["completion_tokens"]
            self._sample.prompt_tokens = usage["prompt_tokens"]
        if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
            self._sample.arrivals.append(now)

    def on_message_complete(self) -> None:
        self.complete = True
        status = self.parser.get_status_code()
        if status != 200:
            raise StreamFailed(f"HTTP {status}")
        if not self.done:
            raise StreamFailed("stream without [DONE]")


async def send(target: Target, item: WorkItem, scheduled: float) -> Sample:
    """One request over a connection of its own; never raises for what the server does."""
    sample = Sample(scheduled)
    try:
        async with asyncio.timeout(LIMIT):
            await _exchange(target, item, sample)
        if not sample.arrivals:
            sample.error = "no token"
    except StreamFailed as error:
        sample.error = str(error)
    except TimeoutError:
        sample.error = "timeout"
    except (OSError, asyncio.IncompleteReadError, httptools.HttpParserError, ValueError) as error:
        sample.error = type(error).__name__
    sample.ended = time.perf_counter()
    return sample


async def _exchange(target: Target, item: WorkItem, sample: Sample) -> None:
    host, port, tls, path = target.address()
    async with asyncio.timeout(CONNECT_LIMIT):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        body = target.body(item)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        stream = _Stream(sample)
        while not stream.complete:
            data = await reader.read(READ_BYTES)
            if not data:
                raise StreamFailed("connection cut")
            _feed(stream, data)
    finally:
        writer.close()


def _feed(stream: _Stream, data: bytes) -> None:
    try:
        stream.parser.feed_data(data)
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, StreamFailed):
            raise error.__context__ from None
        raise


async def closed_loop(
    target: Target, items: Sequence[WorkItem], concurrency: int, seen: Callable[[Sample], None]
) -> None:
    """`concurrency` clients, each sending its next request when its last one has ended."""
    todo = iter(items)

    async def client() -> None:
        for item in todo:
            seen(await send(target, item, time.perf_counter()))

    await asyncio.gather(*(client() for _ in range(concurrency)))


async def open_loop(
    target: Target, items: Sequence[WorkItem], rate: float, seed: int, seen: Callable[[Sample], None]
) -> None:
    """Poisson arrivals, `rate` a second, whatever the server does; latency counts from the arrival's own time."""

    async def one(item: WorkItem, at: float) -> None:
        seen(await send(target, item, at))

    async with asyncio.TaskGroup() as tasks:
        async for item, at in _arrivals(items, rate, seed):
            tasks.create_task(one(item, at))


async def _arrivals(items: Sequence[WorkItem], rate: float, seed: int) -> AsyncIterator[tuple[WorkItem, float]]:
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    at = time.perf_counter()
    for item in items:
        await asyncio.sleep(at - time.perf_counter())
        yield item, at
        at += chance.expovariate(rate)
