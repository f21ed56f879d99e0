"""The store of the repository on Redis; statuses expire by the server's clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared.models.worker_registry import LOADING_LEASES
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import Script
from shared.repository.joining import join
from shared.repository.status import ModelStatus
from shared.repository.store import LOAD_TTL_S, RESULT_TTL_S, ModelOrder, OrderResult

STRUCTURE = "repository"
_decode_statuses = msgspec.json.Decoder(tuple[ModelStatus, ...]).decode
_decode_order = msgspec.json.Decoder(ModelOrder).decode
_decode_result = msgspec.json.Decoder(OrderResult).decode


class RedisRepositoryStore:
    """RepositoryStore on Redis.

    Args:
        lease: seconds after which the statuses of a silent worker expire. Those of a worker that loads a model live
            for LOADING_LEASES, as its heartbeats do.
    """

    def __init__(self, server: RedisServer, *, lease: float) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, STRUCTURE, Path(__file__).with_name("store.lua"))
        self._lease_ms = int(lease * 1000)
        self._orders: dict[str, ModelOrder] = {}  # by id; orders with files are large, and are read once

    async def report(self, worker_id: str, statuses: Sequence[ModelStatus]) -> None:
        loads = any(version.state == "LOADING" for status in statuses for version in status.versions)
        kept_ms = self._lease_ms * (LOADING_LEASES if loads else 1)
        data = msgspec.json.encode(statuses) if statuses else b""
        names = [keys.REPOSITORY_WORKERS, keys.REPOSITORY_PREFIX + worker_id]
        await self._run("report", names, worker_id, kept_ms, data)

    async def statuses(self) -> list[ModelStatus]:
        parts = iter(await self._run("statuses", [keys.REPOSITORY_WORKERS], keys.REPOSITORY_PREFIX))
        found = self._foreign.read_all(STRUCTURE, zip(parts, parts, strict=True), _decode_statuses)
        return join(status for statuses in found for status in statuses)

    async def place(self, order: ModelOrder) -> None:
        data = msgspec.json.encode(order)
        await self._run("place", keys.ORDERS, order.model, order.id, data, keys.REPOSITORY_WAKE)

    async def orders(self) -> list[ModelOrder]:
        parts = iter(await self._run("orders", keys.ORDERS, *self._orders))
        found: dict[str, ModelOrder] = {}
        for model, order_id, data in zip(parts, parts, parts, strict=True):
            if (order := self._order(model, order_id, data)) is not None:
                found[order.id] = order
        self._orders = found
        return list(found.values())

    def _order(self, model: bytes, order_id: bytes, data: bytes) -> ModelOrder | None:
        """Return an order; None for foreign data, which is noted."""
        if not data:
            return self._orders.get(order_id.decode())
        order = self._foreign.read(STRUCTURE, model, lambda: _decode_order(data))
        if order is not None and (order.model.encode(), order.id.encode()) != (model, order_id):
            self._foreign.note(STRUCTURE, model, "not an order of this model")
            return None
        return order

    async def begin_load(self, load: str, worker_id: str) -> frozenset[str]:
        found = await self._run("begin_load", [keys.loads(load)], worker_id, LOAD_TTL_S * 1000)
        return frozenset(member.decode(errors="replace") for member in found)

    async def end_load(self, load: str, worker_ids: Sequence[str]) -> None:
        await self._run("end_load", [keys.loads(load)], *worker_ids)

    async def answer(self, result: OrderResult) -> None:
        data = msgspec.json.encode(result)
        await self._run("answer", [keys.order_result(result.id)], data, RESULT_TTL_S * 1000)

    async def result(self, order_id: str) -> OrderResult | None:
        key = keys.order_result(order_id)
        data = await self._run("result", [key])
        return None if data is None else self._foreign.read(STRUCTURE, key, lambda: _decode_result(data))

    async def _run(self, command: str, names: Sequence[str], *args: str | int | bytes) -> Any:
        async with self._server.reaching("the model repository's state"):
            return await self._script(command, names, *args)
