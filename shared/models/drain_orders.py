"""Orders to workers to leave, placed by an operator and obeyed by the worker of that id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.node import pack

DrainOrder = Literal["finish", "now"]  # now: hand over the running answers at once
KEPT_S = 3600  # for a worker that is still loading


class DrainOrders:
    """Orders on Redis. Every call may raise Unavailable."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def place(self, worker_ids: Sequence[str], order: DrainOrder) -> None:
        """Order workers to leave; a later order replaces an earlier one."""
        names = [keys.drain_order(each) for each in worker_ids]
        async with self._server.reaching("Redis"):
            await self._server.client.exchange([(name, pack("SET", name, order, "EX", KEPT_S)) for name in names])
            await self._server.client.publish(keys.DRAIN_WAKE, "ordered")

    async def order_for(self, worker_ids: Sequence[str]) -> DrainOrder | None:
        """Return the most urgent order to one of the workers of a process; None without one."""
        names = [keys.drain_order(each) for each in worker_ids]
        async with self._server.reaching("Redis"):
            found = await self._server.client.exchange([(name, pack("GET", name)) for name in names])
        texts = {each.decode(errors="replace") for each in found if isinstance(each, bytes)}
        return next((order for order in reversed(get_args(DrainOrder)) if order in texts), None)
