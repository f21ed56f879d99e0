"""Chaos cases: requests that kill their workers, duplicate submits, and wrong clocks."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.scale import Scale
from tests.support.cluster import Cluster, running
from tests.support.stream_load import Load, longest

pytestmark = pytest.mark.slow

HOUR_S = 3600
TAKEOVER_SLACK_S = 2.0  # by which a stream's stall in a takeover may exceed the lease
TIMEOUT_S = 1.5
WORKERS_LOST = (2, 3)  # by one such request: two if it ran alone on them


@pytest.mark.case("poison", "a request that kills every worker")
async def test_a_poisonous_request_is_set_aside(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given streams, a request that kills each of its workers becomes a dead letter, and all others finish."""
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
        letters = await cluster.client.dead_letters()
        deaths += sum(worker.births for worker in cluster.workers)
    figures |= {"poisonous": poisons, "workers lost": deaths, "others finished": len(load.answers)}
    figures |= {"stall max s": max(longest(load.answers))}
    assert deaths == sum(letter["attempts"] for letter in letters)
    assert [letter["attempts"] in WORKERS_LOST for letter in letters] == [True] * poisons


@pytest.mark.case("idempotency", "the same Idempotency-Key from 100 clients")
async def test_one_key_is_one_execution(fleet: Cluster, scale: Scale, figures: dict[str, Any]) -> None:
    """Given clients that send a job under one key to all replicas at once, it is one job and runs once."""
    rounds, clients = scale(2, 50), 100
    for number in range(rounds):
        client, before = fleet.client, fleet.requests()
        prompt, key = f"[pace 10] once {number}", secrets.token_hex(16)
        answers = await asyncio.gather(*(client.submit(prompt, 20, key=key) for _ in range(clients)))
        [job] = {answer.job for answer in answers}
        (await client.follow(answers[0])).verify()
        assert fleet.requests() - before == {job}
        status, said = await client.post(client.body(prompt, 21), headers={"idempotency-key": key})
        assert (status, said["code"]) == (422, "idempotency_key_reused")
    figures |= {"rounds": rounds, "clients": clients, "executions of each": 1}


@pytest.mark.case("clock", "clocks of API and workers an hour ahead and behind")
async def test_wrong_clocks_change_nothing(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given clocks of API and workers that are two hours apart, all of them use Redis' time."""
    environment = {"api": _shifted(HOUR_S), "worker": _shifted(-HOUR_S)}
    async with running(tmp_path, apis=1, environment=environment, lease=scale.lease, max_attempts=100) as cluster:
        begin = time.time()
        async with Load(cluster.client, streams=16, tokens=60, pace=50) as load:
            for number in range(scale(1, 10)):
                await load.progress()
                victim = cluster.workers[0]
                victim.kill()
                victim.environment = {**victim.environment, **_shifted(-HOUR_S if number % 2 else HOUR_S)}
                victim.spawn()
                await asyncio.gather(load.progress(), victim.serving())
        job = await cluster.client.job(load.answers[0].job)
        late = await cluster.client.submit("[pace 100] late", 200, timeout=TIMEOUT_S)
        await cluster.client.follow(late)
        took = time.monotonic() - late.submitted
    assert job is not None
    figures |= {"answers": len(load.answers), "stall max s": max(longest(load.answers))}
    figures |= {"a timeout of s": TIMEOUT_S, "ends it after s": took}
    assert (late.end, late.data["error"]["code"]) == ("error", "deadline_exceeded")
    assert took >= TIMEOUT_S - 0.1
    assert begin - 1 < job["created_at"] < job["started_at"] < job["finished_at"] < time.time() + 1
    if scale.full:
        assert took <= TIMEOUT_S + TAKEOVER_SLACK_S
        assert max(longest(load.answers)) <= scale.lease + TAKEOVER_SLACK_S


def _shifted(seconds: int) -> dict[str, str]:
    """Return the environment of a process with a shifted wall clock."""
    folder = Path(__file__).parents[1] / "support" / "clock_shift"
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "CLOCK_SHIFT": str(seconds),
    }
