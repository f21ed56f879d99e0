"""Receiver of webhooks: a real HTTP server with scripted answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from producer_api.webhooks.signing import PREFIX
from shared.settings import Settings
from tests.support.waiting import LIMIT_S

SECRET = PREFIX + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = PREFIX + "b" * 40


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Answers each POST with the next of `answers`, then with 204; an answer of None stays silent."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.received: list[Received] = []
        self._changed = asyncio.Condition()
        self.port = 0

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        answer = self.answers.pop(0) if self.answers else status(204)
        async with self._changed:
            self.received.append(Received(head[0].split()[1], headers, body))
            self._changed.notify_all()
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    async def until(self, count: int) -> list[Received]:
        async with asyncio.timeout(LIMIT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.received) >= count)
        return self.received


def status(code: int, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {code} x\r\n{lines}content-length: 0\r\nconnection: close\r\n\r\n".encode()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
def settings(settings: Settings) -> Settings:
    secrets = type(settings.webhook_secrets)(f"{SECRET} {OTHER}")
    allowed = {"webhook_allow_http": True, "webhook_allow_private": True, "webhook_timeout": 60.0}
    return settings.model_copy(update={"webhook_secrets": secrets, **allowed})
