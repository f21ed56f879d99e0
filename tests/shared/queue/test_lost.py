"""The search for requests whose place in the queue another program deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shared.backend import Backend
from shared.protocol import PriorityClass
from shared.queue.interface import Room
from shared.redis import keys
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request

NAMES = keys.transport(MODEL)
COUNTERS, WAITING = NAMES[:2]
STREAM = keys.queue(MODEL, PriorityClass.STANDARD)
LANE = keys.lane_prefix(MODEL)


async def test_a_long_queue_is_searched_in_slices_if_requests_are_missing(
    settings: Settings, backend_of: Callable[..., Awaitable[Backend]]
) -> None:
    """Given 1,500 waiting requests, several short calls find a deleted lease, and those whose place was deleted."""
    backend = await backend_of(
        "redis", settings.model_copy(update={"queue_depth": 2000, "tenant_queue_depth": 2000})
    )
    waiting = [make_request() for _ in range(1500)]
    await backend.transport.publish_many(waiting)
    await backend.transport.lost(MODEL)
    [taken] = (await backend.transport.pull(MODEL, "a", Room.all(1))).found
    before = await calls(backend)
    assert (await backend.transport.lost(MODEL)).job_ids == []
    assert (await calls(backend)).get("hscan") == before.get("hscan")  # nothing is missing
    await backend.redis.xack(STREAM, keys.GROUP, taken.claim.entry)
    await backend.transport.lost(MODEL)
    assert (await backend.transport.claim(MODEL, "b", Room.all(1))).found[0].request == taken.request

    gone = sorted(request.id for request in waiting[1::500])
    await backend.redis.hdel(WAITING, *gone)
    await backend.redis.zrem(f"{LANE}2:default", *gone)
    await backend.redis.zrem(f"{LANE}arrivals:2:default", *gone)
    await backend.redis.hincrby(COUNTERS, "n", -3)
    await backend.redis.hincrby(COUNTERS, "n#2", -3)  # so that nothing shows the loss at once
    before = await calls(backend)
    assert sorted((await backend.transport.lost(MODEL)).job_ids) == gone
    after = await calls(backend)
    assert after["hscan"] - before.get("hscan", 0) >= 3
    assert after["zscore"] - before.get("zscore", 0) < 2 * 1600  # each request was looked at once

    await backend.transport.forget(MODEL, gone)
    await backend.redis.hset(COUNTERS, "n", 7)
    await backend.transport.lost(MODEL)
    assert (await backend.transport.depth(MODEL)).waiting == 1496


async def calls(backend: Backend) -> dict[str, int]:
    stats = await backend.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
