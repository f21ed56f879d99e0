"""A Redis Cluster as one client: each command goes to the node that holds its key.

The slot table is read once, and again when a node redirects, fails or stops answering. A command touches
keys of one slot. Only what a node refused (MOVED, ASK, TRYAGAIN) is sent again.
"""

from __future__ import annotations

import asyncio
import binascii
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from shared.errors import ConfigError
from shared.redis.multiplexer import Pipe
from shared.redis.node import Client, Command, pack
from shared.redis.single_flight import Shared, first_answer
from shared.redis.url import Host
from shared.redis.wire import connect

SLOTS = 16_384
MAX_REDIRECTS = 8  # while slots move, a call may be redirected several times
TRY_AGAIN_S = 0.05  # while the keys of a call are on two nodes
MIN_REFRESH_S = 0.5  # between two readings of the slot table
# Commands without a key go to the node of slot 0, so that TIME is one clock for all processes.
KEYLESS = frozenset({"TIME", "PING", "INFO", "CONFIG GET", "CLUSTER INFO", "ACL WHOAMI", "PUBLISH"})

Route = tuple[Host, bool]  # a node, and whether the command needs ASKING before it


def slot_of(key: str) -> int:
    """Return the slot of a key, by its hash tag if it has one (Redis Cluster specification, "Hash tags")."""
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    tag = key[start + 1 : end] if end > start + 1 else key
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Cluster(Client):
    """Client with redis-py's commands, each on keys of one slot; no pipelines and no transactions.

    Args:
        seeds: nodes to ask first for the slot table.
        pipe: connects to one node.
        timeout: seconds that reading the slot table may take.
    """

    joins_slots = False

    def __init__(self, seeds: Sequence[Host], pipe: Callable[[Host], Pipe], timeout: float) -> None:
        self._make_pipe = pipe
        self._nodes = {host: pipe(host) for host in seeds}
        super().__init__(self._nodes[seeds[0]])
        self._seeds = tuple(seeds)
        self._timeout = timeout
        self._slots: list[Host | None] = []
        self._refreshed = float("-inf")
        self._refresh = Shared(self._read_slots)

    def _key_of(self, args: Sequence[Any]) -> str:
        name = str(args[0])
        if name in {"EVAL", "EVALSHA"}:
            return str(args[3]) if int(args[2]) else ""
        return "" if name in KEYLESS else str(args[1])

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write per node, and follow redirects until all are answered."""
        if not self._slots:
            await self._refresh()
        replies: list[Any] = [None] * len(commands)
        routes: dict[int, Route] = {i: (self._node(key), False) for i, (key, _) in enumerate(commands)}
        for _ in range(MAX_REDIRECTS):
            found = await self._round(routes, commands)
            routes = {}
            for i, (reply, node) in found.items():
                if isinstance(reply, AskError | TryAgainError):
                    routes[i] = self._redirect(reply, node)
                else:
                    replies[i] = reply
            if not routes:
                return replies
            if any(isinstance(reply, TryAgainError) for reply, _ in found.values()):
                await asyncio.sleep(TRY_AGAIN_S)
        raise ConnectionError(f"the cluster redirected a command more than {MAX_REDIRECTS} times")

    async def _round(self, routes: dict[int, Route], commands: Sequence[Command]) -> dict[int, tuple[Any, Host]]:
        """Return each command's reply, and the node that sent it."""
        groups: dict[Route, list[int]] = defaultdict(list)
        for i, route in routes.items():
            groups[route].append(i)
        answers = await asyncio.gather(
            *(self._ask(route, [commands[i][1] for i in group]) for route, group in groups.items()),
            return_exceptions=True,
        )
        found = {}
        for (route, group), replies in zip(groups.items(), answers, strict=True):
            if isinstance(replies, BaseException):
                raise replies
            found.update({i: (reply, route[0]) for i, reply in zip(group, replies, strict=True)})
        return found

    async def _ask(self, route: Route, packed: list[bytes]) -> list[Any]:
        node, asking = route
        if asking:
            packed = [part for command in packed for part in (pack("ASKING"), command)]
        try:
            replies = await self._pipe_to(node).exchange(packed)
        except (RedisError, OSError, asyncio.CancelledError):
            self._refresh_soon()  # dead or silent: another node may have taken over its slots
            raise
        if any(isinstance(reply, ClusterDownError | ConnectionError) for reply in replies):
            self._refresh_soon()
        return replies[1::2] if asking else replies

    def _redirect(self, reply: AskError | TryAgainError, node: Host) -> Route:
        if isinstance(reply, TryAgainError):
            return node, False
        target = (str(reply.host or node[0]), int(reply.port))
        if not isinstance(reply, MovedError):
            return target, True
        self._slots[int(reply.slot_id)] = target
        self._refresh_soon()
        return target, False

    def _node(self, key: str) -> Host:
        node = self._slots[slot_of(key)]
        if node is None:
            self._refresh_soon()
            raise ConnectionError("no node of the cluster serves the slot of the key")
        return node

    def _pipe_to(self, node: Host) -> Pipe:
        if node not in self._nodes:
            self._nodes[node] = self._make_pipe(node)
        return self._nodes[node]

    def _refresh_soon(self) -> None:
        if time.monotonic() - self._refreshed > MIN_REFRESH_S:
            self._refresh.start()

    async def _read_slots(self) -> None:
        """Ask all known nodes at once; use the first answer."""
        self._refreshed = time.monotonic()
        known = dict.fromkeys([*self._seeds, *self._nodes])
        slots = await first_answer([self._table(node) for node in known], self._timeout)
        self._slots = slots
        gone = set(self._nodes) - set(slots) - set(self._seeds)
        for node in gone:
            await self._nodes.pop(node).close()

    async def _table(self, node: Host) -> list[Host | None]:
        [reply] = await self._pipe_to(node).exchange([pack("CLUSTER", "SLOTS")])
        if isinstance(reply, ResponseError):
            if "cluster support disabled" in str(reply):
                raise ConfigError(f"redis_url: {node[0]}:{node[1]} is not a node of a Cluster", param="redis_url")
            raise reply
        slots: list[Host | None] = [None] * SLOTS
        for first, last, primary, *_ in reply:
            # an empty host means the node that was asked
            host = (str((primary[0] or b"").decode() or node[0]), int(primary[1]))
            slots[first : last + 1] = [host] * (last + 1 - first)
        return slots

    async def dedicated(self) -> Connection:
        """Return a connection to any node; the cluster's bus carries messages to all of them."""
        if not self._slots:
            await self._refresh()
        nodes = sorted({node for node in self._slots if node} or self._seeds)
        try:
            return await connect(self._pipe_to(random.choice(nodes)).pool)  # noqa: S311  spreads load, guards nothing
        except (RedisError, OSError, asyncio.CancelledError):
            self._refresh_soon()
            raise

    async def primaries(self) -> list[Client]:
        if not self._slots:
            await self._refresh()
        return [Client(self._pipe_to(node)) for node in sorted({node for node in self._slots if node})]

    def _pipes(self) -> list[Pipe]:
        return list(self._nodes.values())

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._refresh.stop()
        await super().aclose(close_connection_pool)
