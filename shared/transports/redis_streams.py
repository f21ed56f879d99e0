"""The queue on Redis Streams: one stream per model and class, one consumer group, a lease by idle time.

A worker holds an entry while the entry's idle time, which its heartbeat resets, is below the lease, all by the
server's clock. It does not know the answers' log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared import keys
from shared.errors import QueueFull
from shared.protocol import PriorityClass, Request, decode_request, encode
from shared.redis_client import RedisServer, Script
from shared.transports.base import Delivery, QueueDepth, Ticket, Undecodable

CLASSES = tuple(PriorityClass)


class RedisStreams:
    """A Transport.

    Args:
        server: holds the queues.
        depth: most requests that may wait for one model, over all classes.
        lease: seconds of silence after which a held message may be claimed.
    """

    def __init__(self, server: RedisServer, *, depth: int, lease: float) -> None:
        self._script = Script(server.client, Path(__file__).with_suffix(".lua"))
        self._server = server
        self._depth = depth
        self._lease_ms = int(lease * 1000)

    async def publish(self, request: Request) -> Ticket:
        reply = await self._run(
            "publish",
            request.model,
            _class(request.priority),
            self._depth,
            encode(request),
            keys.wake_channel(request.model),
        )
        if not reply:
            raise QueueFull(
                f"the queue of {request.model} is full: {self._depth} requests are waiting", retry_after=5
            )
        return Ticket(request.model, request.priority, reply[0].decode(), reply[1])

    async def pull(self, model: str, worker: str, room: int) -> list[Delivery | Undecodable]:
        return _deliveries(model, await self._run("pull", model, worker, room))

    async def claim(self, model: str, worker: str, room: int) -> list[Delivery | Undecodable]:
        return _deliveries(model, await self._run("claim", model, worker, room, self._lease_ms))

    async def renew(self, model: str, worker: str, tickets: Sequence[Ticket]) -> list[Ticket]:
        if not tickets:
            return []
        lost = iter(await self._run("renew", model, worker, *_entries(tickets)))
        gone = {(CLASSES[int(index) - 1], entry.decode()) for index, entry in zip(lost, lost, strict=True)}
        return [ticket for ticket in tickets if (ticket.priority, ticket.entry) in gone]

    async def release(self, model: str, worker: str, tickets: Sequence[Ticket]) -> None:
        if tickets:
            wake = keys.wake_channel(model)
            await self._run("release", model, worker, self._lease_ms, wake, *_entries(tickets))

    async def acknowledge(self, ticket: Ticket) -> None:
        await self._run("acknowledge", ticket.model, _class(ticket.priority), ticket.entry)

    async def depth(self, model: str) -> QueueDepth:
        waiting, held, age_ms = await self._run("depth", model)
        return QueueDepth(waiting, held, age_ms / 1000)

    async def position(self, ticket: Ticket) -> int:
        place: int = await self._run("position", ticket.model, _class(ticket.priority), ticket.ordinal)
        return place

    async def _run(self, command: str, model: str, *args: Any) -> Any:
        async with self._server.reaching("the queue"):
            return await self._script(command, [*keys.queues(model), keys.counters(model)], keys.GROUP, *args)


def _class(priority: PriorityClass) -> int:
    """A class on the wire of the script: the index of its queue, from 1."""
    return CLASSES.index(priority) + 1


def _entries(tickets: Iterable[Ticket]) -> list[str | int]:
    return [part for ticket in tickets for part in (_class(ticket.priority), ticket.entry)]


def _deliveries(model: str, reply: list[Any]) -> list[Delivery | Undecodable]:
    found: list[Delivery | Undecodable] = []
    for index, entry, payload, attempt in reply:
        ticket = Ticket(model, CLASSES[index - 1], entry.decode())
        try:
            found.append(Delivery(decode_request(payload), ticket, attempt))
        except msgspec.DecodeError as error:
            found.append(Undecodable(ticket, str(error)))
    return found
