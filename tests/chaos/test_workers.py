"""Chaos cases of workers: they die, or are suspended."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.chaos.scale import Scale
from tests.support.cluster import Cluster
from tests.support.stream_client import until
from tests.support.stream_load import Load, longest, percentile

pytestmark = pytest.mark.slow

TAKEOVER_SLACK_S = 2.0  # by which a stream's stall in a takeover may exceed the lease


@pytest.mark.case("worker-kill", "worker kill -9 mid-stream")
async def test_streams_outlive_their_workers(
    fleet: Cluster, scale: Scale, figures: dict[str, Any], dice: random.Random
) -> None:
    """Given many streams, if workers are killed again and again, no stream has a gap, a repeat or a wrong text."""
    kills = scale(3, 200)
    async with Load(fleet.client, streams=scale(32, 64), tokens=scale(40, 120), pace=50) as load:
        for _ in range(kills):
            await load.progress()
            victim = dice.choice(fleet.workers)
            victim.kill()
            victim.spawn()
            await asyncio.gather(load.progress(), victim.serving())
    stalls = longest(load.answers)
    figures |= {"kills": kills, "answers": len(load.answers), "tokens": sum(a.seq for a in load.answers)}
    figures |= {"stall p50 s": percentile(stalls, 50), "p99 s": percentile(stalls, 99), "max s": max(stalls)}
    if scale.full:
        assert percentile(stalls, 99) <= scale.lease + TAKEOVER_SLACK_S


@pytest.mark.case("worker-pause", "worker SIGSTOP, then CONT")
async def test_a_suspended_worker_is_fenced(fleet: Cluster, scale: Scale, figures: dict[str, Any]) -> None:
    """Given a worker that is suspended past its lease, its appends are refused when it continues."""
    pause = scale(2.5, 10.0)
    victim = fleet.workers[0]
    refused = victim.count("lease_lost")
    async with Load(fleet.client, streams=24, tokens=scale(60, 300), pace=50, replay=True) as load:
        await load.progress()
        victim.pause()
        await asyncio.gather(asyncio.sleep(pause), load.progress())
        victim.resume()
        await until(lambda: victim.count("lease_lost") > refused, "the worker learns that it lost its leases")
        await load.progress()
    figures |= {"pause s": pause, "answers": len(load.answers), "refused": victim.count("lease_lost") - refused}
    figures |= {"stall max s": max(longest(load.answers))}
