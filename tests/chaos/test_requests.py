"""Requests that kill their workers, come many times over, or meet clocks that are wrong."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cluster import running
from tests.chaos.load import Load, longest
from tests.chaos.scale import Scale

pytestmark = pytest.mark.slow

HOUR = 3600
SLACK = 2.0  # seconds over the lease that a takeover may cost a stream
MOST_LOST = 3  # workers that one request may take with it


@pytest.mark.case("poison", "a request that kills every worker")
@pytest.mark.xfail(strict=True, reason="requests that share its workers are counted with it, and set aside as well")
async def test_a_poisonous_request_is_set_aside(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given streams, if a request kills each worker that takes it, then it is set aside, and all others finish."""
    poisons = scale(1, 10)
    async with running(tmp_path, workers=2, max_num_seqs=128) as cluster:
        deaths = -sum(worker.births for worker in cluster.workers)
        async with (
            cluster.reviving(),
            Load(cluster.client, streams=16, tokens=scale(60, 200), pace=50) as load,
        ):
            for number in range(poisons):
                await load.progress()
                poison = await cluster.client.submit(f"[die 2] [pace 50] {number}", 10)
                await cluster.client.follow(poison)
                assert (poison.end, poison.data["error"]["code"]) == ("error", "request_abandoned")
        deaths += sum(worker.births for worker in cluster.workers)
    figures |= {"poisonous": poisons, "workers lost": deaths, "others finished": len(load.answers)}
    figures |= {"stall max s": max(longest(load.answers))}
    assert deaths == MOST_LOST * poisons


@pytest.mark.case("clock", "API and worker clocks an hour apart")
@pytest.mark.parametrize("ahead", ["api", "worker"])
async def test_wrong_clocks_change_nothing(
    ahead: str, scale: Scale, figures: dict[str, Any], tmp_path: Path
) -> None:
    """Given one side an hour ahead and the other an hour behind, then leases pass and times are told as ever."""
    shifts = {role: HOUR if role == ahead else -HOUR for role in ("api", "worker")}
    shifted = f"{Path(__file__).parent / 'shifted'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {role: {"PYTHONPATH": shifted, "CLOCK_SHIFT": str(shift)} for role, shift in shifts.items()}
    async with running(tmp_path, apis=1, environment=environment, lease=scale.lease, max_attempts=100) as cluster:
        begin = time.time()
        async with Load(cluster.client, streams=16, tokens=80, pace=50) as load:
            for _ in range(scale(1, 10)):
                await load.progress()
                cluster.workers[0].kill()
                cluster.workers[0].spawn()
                await asyncio.gather(load.progress(), cluster.workers[0].serving())
        job = await cluster.client.job(load.answers[0].job)
    assert job is not None
    figures |= {"answers": len(load.answers), "stall max s": max(longest(load.answers))}
    assert begin - 1 < job["created_at"] < job["started_at"] < job["finished_at"] < time.time() + 1
    assert max(longest(load.answers)) <= scale.lease + SLACK
