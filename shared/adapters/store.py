"""Store of the registered LoRA adapters, and of the outcomes of orders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from shared.adapters.adapter import MAX_ADAPTERS, Adapter, AdapterOrder, AdapterResult
from shared.models.names import MODEL_NAME
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import Script

STRUCTURE = "adapters"
RESULT_TTL_S = 3_600  # for which the outcome of an order is kept
KNOWN_LIFE_S = 1.0  # for which a process takes the registered adapters from its memory
Registration = Literal["", "exists", "full"]


class AdapterStore(Protocol):
    """Registered adapters, by name, and orders. Every call may raise Unavailable."""

    async def known(self) -> Mapping[str, Adapter]:
        """Return all adapters by name."""

    async def find(self, name: str) -> Adapter | None: ...

    async def register(self, adapter: Adapter, *, replace: bool) -> Registration:
        """Register an adapter; return why not, or "": there is one of its name, or there are MAX_ADAPTERS."""

    async def remove(self, name: str) -> bool:
        """Remove an adapter; return False if it does not exist."""

    async def place(self, order: AdapterOrder) -> None:
        """Publish an order to the present workers of its base model. Repeat it until there is a result."""

    async def answer(self, result: AdapterResult) -> None:
        """Record the outcome of an order; the first answer of several workers is kept."""

    async def result(self, order_id: str) -> AdapterResult | None:
        """Return the outcome of an order; None before there is one."""


_decode_adapter = msgspec.json.Decoder(Adapter).decode
_decode_result = msgspec.json.Decoder(AdapterResult).decode


def _decode(name: bytes, data: bytes) -> Adapter:
    """Return the adapter of a name. Raises ValueError for what no worker has registered under it."""
    adapter = _decode_adapter(data)
    if adapter.name.encode() != name or not MODEL_NAME.fullmatch(adapter.name) or adapter.base == adapter.name:
        raise ValueError("an adapter of another name")
    return adapter


class RedisAdapterStore:
    """AdapterStore on Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._foreign = server.foreign
        self._script = Script(server, STRUCTURE, Path(__file__).with_name("store.lua"))

    async def known(self) -> Mapping[str, Adapter]:
        parts = await self._run("known", [keys.ADAPTERS])
        entries = zip(parts[::2], parts[1::2], strict=True)
        found = (self._foreign.read(STRUCTURE, name, partial(_decode, name, data)) for name, data in entries)
        return {adapter.name: adapter for adapter in found if adapter is not None}

    async def find(self, name: str) -> Adapter | None:
        data = await self._run("find", [keys.ADAPTERS], name)
        return None if data is None else self._foreign.read(STRUCTURE, name, partial(_decode, name.encode(), data))

    async def register(self, adapter: Adapter, *, replace: bool) -> Registration:
        data = msgspec.json.encode(adapter)
        answer = await self._run("register", [keys.ADAPTERS], adapter.name, data, int(replace), MAX_ADAPTERS)
        found: Registration = answer.decode()
        return found

    async def remove(self, name: str) -> bool:
        return bool(await self._run("remove", [keys.ADAPTERS], name))

    async def place(self, order: AdapterOrder) -> None:
        await self._run("place", [keys.ADAPTERS], keys.adapter_orders(order.base), msgspec.json.encode(order))

    async def answer(self, result: AdapterResult) -> None:
        await self._run(
            "answer", [keys.adapter_result(result.id)], msgspec.json.encode(result), RESULT_TTL_S * 1000
        )

    async def result(self, order_id: str) -> AdapterResult | None:
        key = keys.adapter_result(order_id)
        data = await self._run("result", [key])
        return None if data is None else self._foreign.read(STRUCTURE, key, lambda: _decode_result(data))

    async def _run(self, command: str, names: Sequence[str], *args: str | int | bytes) -> Any:
        async with self._server.reaching("the registered adapters"):
            return await self._script(command, names, *args)


class MemoryAdapterStore:
    """AdapterStore in memory.

    Args:
        publish: publishes a message to the readers of a channel.
    """

    def __init__(self, publish: Callable[[str, bytes], None]) -> None:
        self._publish = publish
        self._adapters: dict[str, Adapter] = {}
        self._results: dict[str, AdapterResult] = {}

    async def known(self) -> Mapping[str, Adapter]:
        return dict(self._adapters)

    async def find(self, name: str) -> Adapter | None:
        return self._adapters.get(name)

    async def register(self, adapter: Adapter, *, replace: bool) -> Registration:
        if adapter.name in self._adapters:
            if not replace:
                return "exists"
        elif len(self._adapters) >= MAX_ADAPTERS:
            return "full"
        self._adapters[adapter.name] = adapter
        return ""

    async def remove(self, name: str) -> bool:
        return self._adapters.pop(name, None) is not None

    async def place(self, order: AdapterOrder) -> None:
        self._publish(keys.adapter_orders(order.base), msgspec.json.encode(order))

    async def answer(self, result: AdapterResult) -> None:
        self._results.setdefault(result.id, result)

    async def result(self, order_id: str) -> AdapterResult | None:
        return self._results.get(order_id)


class KnownAdapters:
    """The registered adapters as one process knows them, at most KNOWN_LIFE_S old.

    Args:
        store: None where adapters are off; then none is known.
    """

    def __init__(self, store: AdapterStore | None) -> None:
        self._store = store
        self._found: Mapping[str, Adapter] = {}
        self._read_at = float("-inf")

    def forget(self) -> None:
        """Read them again at the next call."""
        self._read_at = float("-inf")

    async def get(self, life: float = KNOWN_LIFE_S) -> Mapping[str, Adapter]:
        """Return the adapters by name, read again if they are older than `life` seconds. Raises Unavailable."""
        if self._store is None:
            return self._found
        now = asyncio.get_running_loop().time()
        if now - self._read_at > life:
            self._found, self._read_at = await self._store.known(), now
        return self._found
