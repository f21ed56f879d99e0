"""Small OpenAI-compatible server that sends the bytes a test gives it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from headrace.bench.harness.load import Target
from headrace.bench.harness.workload import WorkItem

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"
Respond = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


def text(content: str) -> bytes:
    return (
        b"data: "
        + json.dumps({"choices": [{"delta": {"content": content}}]}, ensure_ascii=False).encode()
        + b"\n\n"
    )


def chunked(*parts: bytes) -> bytes:
    """Return a complete chunked response."""
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def cut(*parts: bytes) -> bytes:
    return chunked(*parts).removesuffix(b"0\r\n\r\n")


ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
ANSWER = chunked(ROLE, text("Hello"), text(" you"), USAGE, DONE)


async def answer(number: int, writer: asyncio.StreamWriter) -> None:
    """Answer with two tokens at once."""
    writer.write(ANSWER)


def sending(data: bytes) -> Respond:
    """Return a handler that answers every request with these bytes, and then closes the connection."""

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return respond


@dataclass
class FakeServer:
    """Server whose `respond` gets each request's number, from 0. `bodies` and `paths` are those of the requests."""

    url: str = ""
    respond: Respond = answer
    bodies: list[dict[str, object]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0

    def target(self, **fields: object) -> Target:
        return Target(self.url, "fake", **fields)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
            self.paths.append(head.split()[1])
            self.bodies.append(json.loads(await reader.readexactly(length)))
            await self.respond(len(self.bodies) - 1, writer)
            await writer.drain()
        finally:
            self.open -= 1
            writer.close()


def work(count: int) -> list[WorkItem]:
    return [WorkItem(f"secret prompt {i}", 3, 2) for i in range(count)]
