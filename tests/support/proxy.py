"""TCP proxy with the faults of a network: it delays, resets, holds, loses, throttles and splits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CHUNK_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass
class Direction:
    """Faults of the bytes in one direction; changes take effect at once.

    Attributes:
        delay: seconds by which each piece is delayed.
        rate: bytes per second; None: no limit.
        split: maximum bytes written at a time; None: as they arrive.
        lost: drop the bytes, as a half-open connection does.
    """

    delay: float = 0.0
    rate: float | None = None
    split: int | None = None
    lost: bool = False
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._flowing.set()

    def hold(self) -> None:
        """Hold the bytes back, as a network that is down does: TCP sends them again when it is up."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            step = self.split or len(data)
            for start in range(0, len(data), step):
                if self.lost:
                    break
                part = data[start : start + step]
                writer.write(part)
                await writer.drain()
                if self.rate is not None:
                    await asyncio.sleep(len(part) / self.rate)


class FaultProxy:
    """Proxy between clients and one address.

    Attributes:
        target: host and port to which new connections are forwarded.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self.to_server = Direction()
        self.to_client = Direction()
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[FaultProxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def partition(self) -> None:
        """Hold all bytes and new connections until `heal`; close nothing."""
        self._reachable.clear()
        self.to_server.hold()
        self.to_client.hold()

    def blackhole(self) -> None:
        """Do not answer new connections until `heal`; open connections continue."""
        self._reachable.clear()

    def halve(self) -> None:
        """Drop all bytes of open connections in both directions; close nothing."""
        self.to_server.lost = self.to_client.lost = True

    def heal(self) -> None:
        """Remove all faults. Connections that lost bytes are reset, since the rest of their data makes no sense."""
        if self.to_server.lost or self.to_client.lost:
            self.cut()
        for direction in (self.to_server, self.to_client):
            direction.delay, direction.rate, direction.split, direction.lost = 0.0, None, None, False
            direction.release()
        self._reachable.set()

    def cut(self) -> None:
        """Reset all open connections, on both sides."""
        for writers in self._connections.values():
            for writer in writers:
                with contextlib.suppress(OSError):  # already closed
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [writer]
        try:
            await self._reachable.wait()
            upstream, server = await asyncio.open_connection(*self.target)
            writers.append(server)
            await self._join(self.to_server.pump(reader, server), self.to_client.pump(upstream, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the server is down, a side hung up, or the test is over
        finally:
            del self._connections[task]
            for one in writers:
                one.transport.abort() if one.transport.is_closing() else one.close()

    async def _join(self, *pumps: asyncio._CoroutineLike[None]) -> None:
        """Run until one side has ended. HTTP and Redis do not use half-closed connections."""
        tasks = [asyncio.ensure_future(pump) for pump in pumps]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
