"""Chaos cases of the store: it dies, cannot be reached, or has no space left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.chaos.scale import Scale
from tests.support.cluster import Cluster, running
from tests.support.disk import SizeRecorder, full_disk
from tests.support.stream_client import until
from tests.support.stream_load import Load, Submits

pytestmark = pytest.mark.slow

LOSS_WINDOW_S = 1.0  # of accepted work that `everysec` may lose when the machine dies
MAX_REFUSAL_S = 2.0  # until a submit is refused while the store is unreachable
MAX_HEALING_S = 5.0  # until everything continues


class Stored(NamedTuple):
    """A cluster, and the mode of its store's append-only file."""

    appendfsync: str
    cluster: Cluster


@pytest_asyncio.fixture(scope="module", loop_scope="package", params=["always", "everysec"])
async def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stored]:
    """Cluster in each mode of its store's append-only file, for the cases that kill the store or fill its disk."""
    folder = tmp_path_factory.mktemp("stored")
    async with running(folder, appendfsync=request.param, max_attempts=100) as cluster:
        yield Stored(request.param, cluster)


@pytest.mark.case("store-kill", "Redis kill -9 and restart, AOF")
async def test_accepted_work_outlives_the_store(stored: Stored, scale: Scale, figures: dict[str, Any]) -> None:
    """Given submits and streams, if the store dies, all work that it promised to keep is there and completes.

    A kill loses nothing that was written. So for `everysec` the last second is cut off the file, as when the
    machine dies: that is the most this mode may lose.
    """
    cluster, window = stored.cluster, LOSS_WINDOW_S if stored.appendfsync == "everysec" else 0.0
    kills, jobs, lost, healing = scale(1, 20), 0, 0, []
    for _ in range(kills):
        async with (
            SizeRecorder(cluster.store) as journal,
            Load(cluster.client, streams=16, tokens=60, pace=50, total=16) as load,
            Submits(cluster.client) as submits,
        ):
            await until(lambda load=load: min(answer.seq for answer in load.live) >= 30, "streams")
            died = time.monotonic()
            cluster.store.kill()
            journal.cut(died - window)
            await cluster.restart_store()
            healing.append(await load.progress())
            await load.finished()
        lost += await submits.settle(since=died - window)
        jobs += len(submits.accepted)
    figures |= {"kills": kills, "jobs": jobs, "lost": lost, "streams go on after s": max(healing)}
    assert jobs > 0


@pytest.mark.case("partition", "partition from Redis of the API, then of the workers")
async def test_a_partition_heals(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given streams, if one side loses the store for a while, submits are refused at once, and all recovers."""
    length = scale(3.0, 30.0)
    answered, healing = [], []
    async with running(tmp_path, apis=1, proxied=True, max_attempts=100) as cluster:
        client = cluster.client
        async with Load(client, streams=16, tokens=scale(40, 600), pace=50) as load:
            for side, expected in (("api", 503), ("worker", 202)):
                await load.progress()
                cluster.links[side].partition()
                begin = time.monotonic()
                while (now := time.monotonic()) < begin + length:
                    status, _ = await client.post(client.body("during", 2))
                    answered.append(time.monotonic() - now)
                    assert status == expected
                    await asyncio.sleep(0.2)
                cluster.links[side].heal()
                healing += [await load.progress(), await until_accepted(cluster)]
    figures |= {"length s": length, "submits answered within s": max(answered)}
    figures |= {"all goes on after s": max(healing)}
    if scale.full:
        assert max(answered) <= MAX_REFUSAL_S
        assert max(healing) <= MAX_HEALING_S


async def until_accepted(cluster: Cluster) -> float:
    """Return the seconds until a client has a whole answer."""
    begin = time.monotonic()
    await cluster.client.run("after", 2)
    return time.monotonic() - begin


@pytest.mark.case("disk-full", "disk full under the append-only file")
async def test_a_full_disk_loses_nothing(stored: Stored, scale: Scale, figures: dict[str, Any]) -> None:
    """Given submits and streams, if the disk is full, submits are refused until there is space again.

    With `always`, the store ends when it cannot write, and is restarted.
    """
    cluster = stored.cluster
    async with (
        Load(cluster.client, streams=16, tokens=scale(50, 600), pace=50) as load,
        Submits(cluster.client) as submits,
    ):
        await load.progress()
        with full_disk(cluster.store):
            refused = submits.refused + scale(20, 200)
            await until(lambda: submits.refused >= refused, "submits are refused")
            assert (cluster.store.pid is None) == (stored.appendfsync == "always")
        async with cluster.reviving():
            healed = await load.progress()
    await submits.settle(since=time.monotonic())
    figures |= {"jobs": len(submits.accepted), "lost": 0, "refused": submits.refused}
    figures |= {"streams go on after s": healed}
    if scale.full:
        assert healed <= MAX_HEALING_S
