"""Contract of the store of registered adapters, in memory and on Redis."""

from __future__ import annotations

import msgspec
import pytest

from shared.adapters import store
from shared.adapters.adapter import Adapter, AdapterOrder, AdapterResult
from shared.adapters.store import KnownAdapters
from shared.backend import Backend
from shared.redis import keys
from tests.support.waiting import LIMIT_S

ADAPTER = Adapter(name="sql", base="m", path="p", digest="d", rank=4, created=1)


async def test_names_are_unique_and_bounded_in_number(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_ADAPTERS", 2)
    other, third = (msgspec.structs.replace(ADAPTER, name=name) for name in ("other", "third"))
    adapters = backend.adapters
    assert await adapters.find("sql") is None
    assert await adapters.register(ADAPTER, replace=False) == ""
    assert await adapters.register(ADAPTER, replace=False) == "exists"
    assert await adapters.register(other, replace=True) == ""
    assert await adapters.register(third, replace=True) == "full"
    changed = msgspec.structs.replace(ADAPTER, digest="e")
    assert await adapters.register(changed, replace=True) == ""
    assert await adapters.known() == {"sql": changed, "other": other}
    assert await adapters.find("sql") == changed
    assert (await adapters.remove("sql"), await adapters.remove("sql")) == (True, False)
    assert await adapters.known() == {"other": other}


async def test_an_order_reaches_the_workers_and_its_first_result_is_kept(backend: Backend) -> None:
    order = AdapterOrder(id="1", action="load", name="sql", base="m", path="p")
    async with backend.live.subscribe(keys.adapter_orders("m")) as orders:
        await backend.adapters.place(order)
        message = await orders.get(LIMIT_S)
    assert isinstance(message, bytes)
    assert msgspec.json.decode(message, type=AdapterOrder) == order
    assert await backend.adapters.result("1") is None
    first = AdapterResult(id="1", error="no", refusal="invalid")
    await backend.adapters.answer(first)
    await backend.adapters.answer(AdapterResult(id="1"))
    assert await backend.adapters.result("1") == first


async def test_foreign_data_are_set_aside(backend: Backend) -> None:
    if backend.server is None:
        return
    await backend.adapters.register(ADAPTER, replace=False)
    other, no_name, own_base = (
        msgspec.json.encode(msgspec.structs.replace(ADAPTER, name=name)) for name in ("y", "a b", "m")
    )
    junk = {"x": "{", b"\xff": other, "other": other, "a b": no_name, "m": own_base}
    await backend.redis.hset(keys.ADAPTERS, mapping=junk)
    assert list(await backend.adapters.known()) == ["sql"]
    for name in ("x", "other", "a b", "m"):
        assert await backend.adapters.find(name) is None
    await backend.redis.set(keys.adapter_result("2"), b"\xff")
    assert await backend.adapters.result("2") is None


async def test_a_process_without_adapters_reads_none(backend: Backend) -> None:
    await backend.adapters.register(ADAPTER, replace=False)
    known = KnownAdapters(backend.adapters)
    assert await KnownAdapters(None).get() == {}
    assert list(await known.get()) == ["sql"]
    await backend.adapters.remove("sql")
    assert list(await known.get()) == ["sql"]  # from its memory
    known.forget()
    assert await known.get() == {}
