"""Ranks that end or hang: their worker ends, and its requests continue on another one."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from shared.backend import Backend
from shared.protocol import Request, SamplingParams
from tests.support.engine_driver import load, run
from tests.support.fakes import answer, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness, answer_tokens, wait_until
from workers.engine.engine import Engine
from workers.engine.interface import EngineLost
from workers.engine.parallel.part import RankPart
from workers.engine.parallel.step_message import Step
from workers.health.watchdog import EngineHung

pytestmark = pytest.mark.slow
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True)
PROMPT = tuple(b"a river runs")
ORPHAN = """
import signal, sys
from workers.engine.parallel.messages import Capacity, Start
from workers.engine.parallel.team import Team
config = {"model": sys.argv[1], "cache_dir": None, "device": "cpu", "num_kv_blocks": 16}
team = Team([Start(rank=1, size=2, config=config, dtype="float32")])
team.ask(Capacity)
print(*team.pids, flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def start(llama: Path) -> Iterator[Callable[[], Engine]]:
    """Return a function that starts an engine of two processes, rank 0 of which has room for more blocks."""
    engines: list[Engine] = []
    size = RankPart.size

    def start() -> Engine:
        engines.append(load(llama, device="cpu", tensor_parallel_size=2, num_kv_blocks=64))
        return engines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankPart, "size", lambda part: replace(size(part), num_blocks=100))
        yield start
    for engine in engines:
        engine._runner._team.end()


@pytest.fixture(scope="module")
def healthy(start: Callable[[], Engine]) -> Engine:
    return start()


def signal_rank(engine: Engine, sent: signal.Signals, at: int) -> None:
    """Send a signal to rank 1 when step `at` begins."""
    team, steps = engine._runner._team, itertools.count()
    begin = team.begin

    def begin_step(step: Step) -> None:
        if next(steps) == at:
            os.kill(team.pids[0], sent)
        begin(step)

    team.begin = begin_step


async def submitted(backend: Backend) -> Request:
    request = msgspec.structs.replace(make_request(), prompt=PROMPT, params=PARAMS)
    await submit(backend, request)
    return request


def gone(pid: int) -> bool:
    """Return whether a process has ended; its parent may not have asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_killed_rank_moves_its_requests(
    start: Callable[[], Engine], healthy: Engine, harness: Harness, backend: Backend
) -> None:
    """Given a rank that is killed within a step, and leases that do not expire, the answer has no gap."""
    doomed = start()
    [expected] = run(healthy, [list(PROMPT)], PARAMS)
    assert run(doomed, [list(PROMPT)], PARAMS) == [expected], "two teams compute the same bits"
    assert doomed.stats().blocks_total == 64, "rank 0 takes no more blocks than the others have"
    signal_rank(doomed, signal.SIGKILL, at=9)
    request = await submitted(backend)
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(pytest.RaisesExc(EngineLost, match="SIGKILL"), flatten_subgroups=True):
            await harness.make(doomed).run()
    async with harness.worker(healthy, "b"):
        events = await answer(backend, request.id)
    assert answer_tokens(events) == expected
    labels = {"model": request.model}
    assert harness.metrics.registry.get_sample_value("headrace_worker_takeovers_total", labels) == 1


async def test_a_rank_that_hangs_ends_its_worker(healthy: Engine, harness: Harness, backend: Backend) -> None:
    harness.settings = harness.settings.model_copy(update={"step_timeout": 0.5})
    signal_rank(healthy, signal.SIGSTOP, at=4)
    await submitted(backend)
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(EngineHung, flatten_subgroups=True):
            await harness.make(healthy).run()
    [worker] = await backend.registry.workers()
    assert worker.state == "hung", "it has given its requests back"


async def test_no_rank_outlives_its_worker(llama: Path) -> None:
    """Given a worker that is killed, and a suspended rank, the rank ends."""
    process = subprocess.Popen([sys.executable, "-c", ORPHAN, str(llama)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        process.kill()
    await wait_until(lambda: gone(pid))
