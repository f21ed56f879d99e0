"""A TCP proxy that does to connections what networks do: delay, cut, hold, lose, throttle, split.

It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CHUNK = 65_536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass
class Direction:
    """What happens to bytes on their way to one end; changes count at once.

    Attributes:
        delay: seconds that each piece waits.
        rate: bytes a second; None is no limit.
        split: most bytes written at a time; None is as they came.
        lost: take the bytes and drop them, as a half-open connection does.
    """

    delay: float = 0.0
    rate: float | None = None
    split: int | None = None
    lost: bool = False
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._flowing.set()

    def hold(self) -> None:
        """Keep the bytes back, as a network that is down does: TCP sends them again when it is up."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
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
    """Stands between clients and one address.

    Args:
        host, port: where connections are passed on to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
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
        """Nothing passes, and no new connection comes through, until `heal`; nothing is closed."""
        self._reachable.clear()
        self.to_server.hold()
        self.to_client.hold()

    def blackhole(self) -> None:
        """New connections get no answer until `heal`; those that are open go on."""
        self._reachable.clear()

    def halve(self) -> None:
        """Swallow what comes from either side of each connection, and close none."""
        self.to_server.lost = self.to_client.lost = True

    def heal(self) -> None:
        """No fault any more. Connections that lost bytes are cut: what follows would make no sense."""
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
                with contextlib.suppress(OSError):  # closed already
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [writer]
        try:
            await self._reachable.wait()
            upstream, server = await asyncio.open_connection(*self._target)
            writers.append(server)
            await self._join(self.to_server.pump(reader, server), self.to_client.pump(upstream, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, a side hung up, or the test is over
        finally:
            del self._connections[task]
            for one in writers:
                one.transport.abort() if one.transport.is_closing() else one.close()

    async def _join(self, *pumps: asyncio._CoroutineLike[None]) -> None:
        """Until one side has ended: half-closed connections are of no use to HTTP or Redis."""
        tasks = [asyncio.ensure_future(pump) for pump in pumps]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
