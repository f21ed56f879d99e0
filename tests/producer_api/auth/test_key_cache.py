"""Cache of API keys: when it reads the database."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from producer_api.auth import key_cache
from producer_api.auth.key_cache import KeyCache
from shared.accounts.api_keys import ApiKey
from shared.accounts.scopes import Scopes
from shared.errors import Unavailable


class Store:
    """Keys by id. It records each look-up, and answers while `gate` is set."""

    def __init__(self, *ids: str) -> None:
        self.keys = {key_id: ApiKey(key_id, "t", Scopes(), 0.0) for key_id in ids}
        self.look_ups: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.unreachable = False

    async def find(self, ids: Collection[str]) -> dict[str, ApiKey]:
        self.look_ups.append(list(ids))
        await self.gate.wait()
        if self.unreachable:
            raise Unavailable("unreachable")
        return {key_id: self.keys[key_id] for key_id in ids if key_id in self.keys}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Event-loop time as the cache sees it."""
    time = [1000.0]

    class Loop:
        def time(self) -> float:
            return time[0]

        def create_future(self) -> asyncio.Future[object]:
            return asyncio.get_running_loop().create_future()

    class Asyncio:
        get_running_loop = staticmethod(Loop)

        def __getattr__(self, name: str) -> object:
            return getattr(asyncio, name)

    monkeypatch.setattr(key_cache, "asyncio", Asyncio())
    return time


async def test_a_key_in_use_is_refreshed_ahead_of_its_end(now: list[float]) -> None:
    """A key is looked up once in the first half of its life, then again without a waiting caller."""
    store = Store("a")
    keys = KeyCache(store.find, life=4)
    for _ in range(3):
        assert await keys.get("a", "") == store.keys["a"]
    assert store.look_ups == [["a"]]
    store.gate.clear()
    now[0] += 2
    assert await keys.get("a", "") == store.keys["a"]
    await asyncio.sleep(0)
    assert store.look_ups == [["a"]] * 2
    now[0] += 1.9
    assert await keys.get("a", "") == store.keys["a"], "the look-up is still in progress"
    del store.keys["a"]
    store.gate.set()
    while len(keys._pending):
        await asyncio.sleep(0)
    assert await keys.get("a", "") is None


async def test_a_cached_key_expires_during_an_outage(now: list[float]) -> None:
    store = Store("a")
    keys = KeyCache(store.find, life=4)
    await keys.get("a", "")
    store.unreachable = True
    now[0] += 3.9
    assert await keys.get("a", "") is not None
    now[0] += 0.1
    with pytest.raises(Unavailable):
        await keys.get("a", "")
    store.unreachable = False
    assert await keys.get("a", "") is not None


async def test_one_look_up_runs_at_a_time() -> None:
    """Keys that are needed at the same time are looked up together, an unknown one among them."""
    store = Store(*map(str, range(50)))
    store.gate.clear()
    keys = KeyCache(store.find, life=4)
    first = asyncio.create_task(keys.get("0", ""))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(keys.get(str(number), "")) for number in [*range(50), *range(50), 99]]
    await asyncio.sleep(0)
    rest[0].cancel()  # others wait for the same key
    store.gate.set()
    assert await first == store.keys["0"]
    found = await asyncio.gather(*rest, return_exceptions=True)
    assert [key.id for key in found[1:-1]] == [*map(str, range(1, 50)), *map(str, range(50))]
    assert found[-1] is None
    assert len(store.look_ups) == 2


async def test_cached_and_pending_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_cache, "MAX_KEYS", 2)
    monkeypatch.setattr(key_cache, "MAX_PENDING", 3)
    store = Store("a", "b", "c")
    keys = KeyCache(store.find, life=4)
    for key_id in "abc":
        await keys.get(key_id, "")
    assert list(keys._cached) == ["b", "c"]
    store.gate.clear()
    waiting = [asyncio.create_task(keys.get(key_id, "")) for key_id in "xyz"]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many"):
        await keys.get("w", "")
    await keys.close()
    assert all(isinstance(each, Unavailable) for each in await asyncio.gather(*waiting, return_exceptions=True))


async def test_a_wrong_key_is_looked_up_each_time(now: list[float]) -> None:
    """A wrong key with a cached id costs a look-up, as an unknown id does."""
    store = Store("a")
    keys = KeyCache(store.find, life=4)
    await keys.get("a", "")
    for key_id in ("a", "b"):
        for _ in range(3):
            await keys.get(key_id, "wrong")
    assert store.look_ups == [["a"]] * 4 + [["b"]] * 3
    await keys.get("a", "")
    assert len(store.look_ups) == 7, "the right key is cached"
