"""Metadata service of a machine in a cloud, which announces the end of the machine when a test asks for it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

TOKEN = b"session"
MACHINE = "vm-1"
AWS_TOKEN, AWS_ACTION = "/latest/api/token", "/latest/meta-data/spot/instance-action"
GCP_PREEMPTED = "/computeMetadata/v1/instance/preempted"
AZURE_EVENTS, AZURE_NAME = "/metadata/scheduledevents", "/metadata/instance/compute/name"
NOT_FOUND = 404, b""


class MetadataService:
    """The part of the services of AWS, GCP and Azure that spot notices use. It serves while the body runs.

    Attributes:
        told: time (time.monotonic) at which a client first got the notice; None before.
    """

    def __init__(self) -> None:
        self.told: float | None = None
        self._announced = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    def announce(self) -> None:
        """Let the machine end soon."""
        self._announced.set()

    def withdraw(self) -> None:
        """Be the service of a new machine."""
        self._announced.clear()
        self.told = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path, _, query = head.split()[1].decode().partition("?")
            if "wait_for_change=true" in query:
                await self._announced.wait()
            status, body = self._answer(path)
            line = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            writer.write(line.encode() + body)
            await writer.drain()
        writer.close()

    def _answer(self, path: str) -> tuple[int, bytes]:
        ends = self._announced.is_set()
        if path == AWS_TOKEN:
            return 200, TOKEN
        if path == AZURE_NAME:
            return 200, MACHINE.encode()
        if ends and self.told is None:
            self.told = time.monotonic()
        if path == AWS_ACTION:
            return (200, b'{"action": "terminate", "time": "2026-01-01T00:00:00Z"}') if ends else NOT_FOUND
        if path == GCP_PREEMPTED:
            return 200, b"TRUE" if ends else b"FALSE"
        if path == AZURE_EVENTS:
            events = [{"EventType": "Preempt", "Resources": [MACHINE]}] if ends else []
            return 200, json.dumps({"DocumentIncarnation": 1, "Events": events}).encode()
        return NOT_FOUND
