"""The contract of TrafficStore, and foreign data on a server."""

from __future__ import annotations

from shared.backend import Backend
from shared.protocol import RequestState
from shared.redis import keys
from shared.repository.traffic.pairs import Pair, Side
from shared.repository.traffic.rules import Branch, Shadow, Split, Traffic
from shared.repository.traffic.store import MAX_PAIRS
from tests.support.foreign_counts import foreign

ALIAS = Split(name="prod", branches=(Branch(model="m", version="2"),), by="tenant")
SHADOW = Shadow(name="prod", model="n", share=0.5)


def pair(at: float) -> Pair:
    return Pair(
        at=at,
        original=Side(model="m", state=RequestState.COMPLETED, run_s=1.0),
        shadow=Side(model="n", state=RequestState.FAILED, error="engine_failed"),
    )


async def test_rules_are_kept_until_they_are_removed(backend: Backend) -> None:
    assert await backend.traffic.traffic() == Traffic()
    await backend.traffic.set_split(Split(name="prod", branches=(Branch(model="old"),)))
    await backend.traffic.set_split(ALIAS)
    await backend.traffic.set_shadow(SHADOW)
    assert await backend.traffic.traffic() == Traffic({"prod": ALIAS}, {"prod": SHADOW})
    assert await backend.traffic.remove_split("prod")
    assert not await backend.traffic.remove_split("prod")
    assert await backend.traffic.remove_shadow("prod")
    assert not await backend.traffic.remove_shadow("prod")
    assert await backend.traffic.traffic() == Traffic()


async def test_new_shadow_begins_without_pairs(backend: Backend) -> None:
    await backend.traffic.set_shadow(SHADOW)
    await backend.traffic.add_pair("prod", pair(1.0))
    await backend.traffic.add_pair("prod", pair(2.0))
    assert await backend.traffic.pairs("prod") == [pair(2.0), pair(1.0)]
    await backend.traffic.remove_shadow("prod")
    assert len(await backend.traffic.pairs("prod")) == 2
    await backend.traffic.set_shadow(SHADOW)
    assert await backend.traffic.pairs("prod") == []


async def test_number_of_pairs_is_bounded(backend: Backend) -> None:
    for i in range(MAX_PAIRS + 5):
        await backend.traffic.add_pair("prod", pair(float(i)))
    found = await backend.traffic.pairs("prod")
    assert (len(found), found[0].at) == (MAX_PAIRS, MAX_PAIRS + 4)


async def test_foreign_rules_are_passed_over(on_redis: Backend) -> None:
    await on_redis.traffic.set_split(ALIAS)
    await on_redis.redis.hset(keys.SPLITS, "other", "{")
    await on_redis.redis.set(keys.SHADOWS, "x")
    assert await on_redis.traffic.traffic() == Traffic({"prod": ALIAS})
    assert foreign(on_redis) == {"traffic": 2}
