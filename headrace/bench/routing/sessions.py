"""Sessions that consistent hashing moves when a worker joins: the worker of each session before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from headrace.bench.routing.clients import Tally, send
from headrace.bench.routing.fleet import Fleet
from headrace.bench.routing.simulated_engine import Device
from headrace.bench.routing.workload import Session
from shared.protocol import Message

SESSIONS = 250
ANSWER_TOKENS = 1
NOTICED_S = 1.5  # after which publishers have noticed new workers


async def measure_moved(fleet: Fleet, sessions: Iterator[Session], device: Device) -> float:
    """Return the share of SESSIONS whose worker changes when one with `device` joins."""
    chosen = [next(sessions) for _ in range(SESSIONS)]
    await asyncio.sleep(NOTICED_S)
    before = await _workers_of(fleet, chosen)
    await fleet.add(device)
    await asyncio.sleep(NOTICED_S)
    after = await _workers_of(fleet, chosen)
    return sum(old != new for old, new in zip(before, after, strict=True)) / SESSIONS


async def _workers_of(fleet: Fleet, sessions: Sequence[Session]) -> list[str]:
    """Send a request of each session, one at a time, so that none moves because of load; return their workers."""
    job_ids = []
    for session in sessions:
        messages = [Message("user", session.turns[0].question)]
        answer = await send(fleet.backend, session.user, messages, ANSWER_TOKENS, Tally())
        job_ids.append(answer.job_id)
    ran_on = fleet.workers_of_jobs()
    return [ran_on[job_id] for job_id in job_ids]
