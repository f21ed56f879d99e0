"""Chaos cases: a rolling restart under load, and a long time of random faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

from tests.chaos.scale import Scale
from tests.support.cluster import Cluster, running
from tests.support.stream_client import until
from tests.support.stream_load import Load, longest, median, percentile

pytestmark = pytest.mark.slow

SAMPLE_INTERVAL_S = 1.0
MAX_GROWTH = 1.1  # of memory and keys, from the middle third of a soak to the last


@pytest.mark.case("rolling-restart", "rolling restart of everything under load")
async def test_a_rolling_restart_fails_nothing(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given a load of requests, if each process is restarted in turn, no request fails."""
    enough, rounds = scale(50, 5000), 0
    async with running(tmp_path, workers=scale(2, 3), max_num_seqs=128) as cluster:
        client = cluster.client
        async with Load(client, streams=scale(12, 32), tokens=10, pace=scale(60, 20)) as load:
            while not rounds or len(load.answers) < enough:
                for node in cluster.nodes:
                    assert await node.stop() == 0
                    await node.start()
                await asyncio.to_thread(cluster.store.stop)
                await cluster.restart_store()
                await load.progress()
                rounds += 1
    figures |= {"rounds": rounds, "requests": len(load.answers), "failed": 0}
    figures |= {"submits sent again": client.refusals, "stall p99 s": percentile(longest(load.answers), 99)}


@pytest.mark.case("soak", "soak with random faults")
async def test_a_long_time_of_faults_leaves_nothing_behind(
    scale: Scale, figures: dict[str, Any], dice: random.Random, tmp_path: Path
) -> None:
    """Given streams, if processes and connections fail at any time, nothing is lost, and nothing grows.

    The first API and the first worker are never killed, so that their memory can be compared.
    """
    length = scale(7.0, scale.minutes * 60)
    settings = {"max_attempts": 100, "max_num_seqs": 128, "result_ttl": scale(3, 20), "request_ttl": scale(15, 60)}
    faults = 0
    async with running(tmp_path, apis=3, workers=3, proxied=True, **settings) as cluster:
        async with (
            ResourceMonitor(cluster) as monitor,
            Load(cluster.client, streams=scale(12, 24), tokens=40, pace=50) as load,
        ):
            end = time.monotonic() + length
            while time.monotonic() < end:
                await dice.choice(FAULTS)(cluster, dice)
                await load.progress()
                faults += 1
        ended = {answer.job for answer in load.answers}
        await until(lambda: not cluster.requests() & ended, "the answers have expired")
        if scale.full:  # including logs of submits that were never queued
            await until(lambda: not cluster.requests(), "all requests have expired", 2 * settings["request_ttl"])
    figures |= {"minutes": length / 60, "faults": faults, "answers": len(load.answers), "lost": 0}
    figures |= {"stall p99 s": percentile(longest(load.answers), 99)}
    grown = monitor.growth()
    figures |= {f"{name} grew": f"{share - 1:+.1%}" for name, share in grown.items()}
    if scale.full:
        assert max(grown.values()) <= MAX_GROWTH, grown


async def kill_worker(cluster: Cluster, dice: random.Random) -> None:
    victim = dice.choice(cluster.workers[1:])
    victim.kill()
    await victim.start()


async def kill_api(cluster: Cluster, dice: random.Random) -> None:
    victim = dice.choice(cluster.apis[1:])
    victim.kill()
    await victim.start()


async def stop_one(cluster: Cluster, dice: random.Random) -> None:
    victim = dice.choice(cluster.apis[1:] + cluster.workers[1:])
    assert await victim.stop() == 0
    await victim.start()


async def pause_worker(cluster: Cluster, dice: random.Random) -> None:
    victim = dice.choice(cluster.workers)
    victim.pause()
    await asyncio.sleep(dice.uniform(0.5, 3.0))
    victim.resume()


async def kill_store(cluster: Cluster, dice: random.Random) -> None:
    cluster.store.kill()
    await cluster.restart_store()


async def cut_links(cluster: Cluster, dice: random.Random) -> None:
    dice.choice(list(cluster.links.values())).cut()


async def break_links(cluster: Cluster, dice: random.Random) -> None:
    """Hold, drop or slow the bytes of one link for a while."""
    link = dice.choice(list(cluster.links.values()))
    fault = dice.choice(("partition", "halve", "blackhole", "hamper"))
    if fault == "hamper":
        link.to_server.delay = link.to_client.delay = 0.02
        link.to_server.split = link.to_client.split = 100
    else:
        getattr(link, fault)()
    await asyncio.sleep(dice.uniform(0.5, 3.0))
    link.heal()


FAULTS: tuple[Callable[[Cluster, random.Random], Awaitable[None]], ...] = (
    kill_worker,
    kill_api,
    stop_one,
    pause_worker,
    kill_store,
    cut_links,
    break_links,
)


class ResourceMonitor:
    """Monitor that samples memory and number of keys every SAMPLE_INTERVAL_S."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._task: asyncio.Task[None] | None = None
        self.samples: list[dict[str, float]] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        cluster = self._cluster
        while True:
            with contextlib.suppress(redis.RedisError):  # the store is down
                keys, memory = cluster.store_size()
                rss = {"API memory": cluster.apis[0].rss, "worker memory": cluster.workers[0].rss}
                self.samples.append({**rss, "Redis memory": memory, "keys": keys})
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    def growth(self) -> dict[str, float]:
        """Return the growth from the middle third to the last, by medians; 1 means no growth."""
        third = len(self.samples) // 3
        middle, last = self.samples[third : 2 * third], self.samples[-third:]
        return {
            name: median([sample[name] for sample in last]) / median([sample[name] for sample in middle])
            for name in self.samples[0]
        }
