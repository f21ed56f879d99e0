"""Engines of two and four processes: results, the same bits in any batch, and ranks that end or hang."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from torch import Tensor

from shared.backend import Backend
from shared.protocol import Request, SamplingParams
from tests.support.checkpoints import random_prompts
from tests.support.engine_driver import drain, load, run
from tests.support.fakes import answer, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness, answer_tokens, wait_until
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineLost, EngineRequest
from workers.engine.parallel.part import RankPart
from workers.engine.parallel.step_message import Step
from workers.engine.parallel.team import TeamRunner
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.speculation.ngrams import NgramDrafter
from workers.engine.speculation.speculator import Speculator
from workers.engine.speculation.step_costs import StepCosts, step_clock
from workers.health.watchdog import EngineHung

pytestmark = pytest.mark.slow
POOL = 14  # blocks: too few for all prompts at once
PROMPTS = [prompt[:24] for prompt in random_prompts(6)]
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True)
PROMPT = tuple(b"a river runs")
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)  # a rank ignores it once it cannot outlive its parent
ORPHAN = """
import signal
from workers.engine.parallel.rank_process import Loss, RankProcess
loss = Loss()
process = RankProcess(1, loss)
process.check_started()
print(process.pid, flush=True)
signal.pause()
"""
Rows = dict[tuple[str, int, int], Tensor]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty cache, but for the kernels."""
    made, built = tmp_path_factory.mktemp("cache"), EngineConfig(Path()).cache_dir
    assert built is not None
    (made / "kernels").symlink_to(built / "kernels")
    return made


@pytest.fixture(scope="module")
def start(llama: Path, cache: Path) -> Iterator[Callable[[], Engine]]:
    """Return a function that starts an engine of two processes, rank 0 of which has room for more blocks.

    Their packed weights are in files that the engines share.
    """
    engines: list[Engine] = []
    settings = {"cache_dir": cache, "shared_weights": True, "block_size": 4, "num_kv_blocks": 256}
    size = RankPart.size

    def start() -> Engine:
        engines.append(load(llama, device="cpu", tensor_parallel_size=2, **settings))
        return engines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankPart, "size", lambda part: replace(size(part), num_blocks=300))
        yield start
    for engine in engines:
        engine._runner._team.end()


@pytest.fixture(scope="module")
def two(start: Callable[[], Engine]) -> Engine:
    """Engine of two processes."""
    return start()


def again(engine: Engine, **settings: Any) -> Engine:
    """Return an engine with the same ranks and other settings of its scheduler."""
    config = replace(engine._config, **settings)
    return Engine(
        config,
        engine._runner,
        engine.tokenizer,
        vocab_size=engine._vocab_size,
        eos_token_ids=frozenset(),
        max_model_len=engine.max_model_len,
        num_blocks=config.num_kv_blocks or 256,
        computation=engine.computation,
    )


def logits(engine: Engine, names: range, n: int = 1) -> Rows:
    """Return the logits that the sampler gets, by request, choice and length."""
    rows: Rows = {}
    compute = engine._runner.run

    def recording(batch: ScheduledBatch, interrupted: object = None) -> Tensor | None:
        found = compute(batch, interrupted)
        if found is not None:
            for item, row in zip([item for item in batch.items if item.samples], found, strict=True):
                sequence = item.sequence
                rows[sequence.job_id, sequence.choice, sequence.num_tokens] = row.clone()
        return found

    engine._runner.run = recording
    try:
        params = SamplingParams(temperature=1.0, seed=5, n=n, max_tokens=6, ignore_eos=True)
        for name in names:
            engine.add(EngineRequest(str(name), tuple(PROMPTS[name]), params))
        drain(engine)
    finally:
        engine._runner.run = compute
    return rows


def forked(engine: Engine) -> list[list[int]]:
    """Return two choices of one request; their common last block is copied."""
    params = SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=6, ignore_eos=True)
    engine.add(EngineRequest("forked", tuple(PROMPTS[4]), params))
    answers = drain(engine)
    return [answers.ids("forked", choice) for choice in range(2)]


def same(found: Rows, expected: Rows) -> bool:
    return bool(found) and all(torch.equal(row, expected[key]) for key, row in found.items())


def test_two_ranks_answer_as_one_process(two: Engine, llama: Path, cache: Path) -> None:
    one = load(llama, device="cpu", block_size=4)
    assert isinstance(two._runner, TeamRunner)
    assert run(two, PROMPTS) == run(one, PROMPTS)
    ours, theirs = (logits(again(each), range(4)) for each in (two, one))
    for key, row in ours.items():
        torch.testing.assert_close(row, theirs[key], atol=1e-4, rtol=1e-4)
    assert one.computation | {"ranks": "2"} == two.computation
    assert one.fingerprint != two.fingerprint
    parts = [path.name.split(".")[0].rpartition("-")[2] for path in (cache / "weights").glob("*.weights")]
    assert sorted(parts) == ["1of2", "2of2"]


def test_a_row_has_the_same_bits_in_any_batch(two: Engine) -> None:
    everyone = range(len(PROMPTS))
    together = logits(again(two), everyone)
    assert len(together) == len(PROMPTS) * 6
    assert same(logits(again(two), range(2, 3)), together)
    assert same(logits(again(two, max_num_batched_tokens=1), range(1)), together)
    crowded = again(two, max_num_batched_tokens=16, num_kv_blocks=POOL)
    assert same(logits(crowded, everyone), together)
    assert crowded.stats().preemptions > 0
    forked = logits(again(two, max_num_batched_tokens=8, num_kv_blocks=POOL), range(3), n=3)
    assert same({key: row for key, row in forked.items() if key[1] == 0}, together)
    assert same(logits(again(two), range(3), n=3), forked)


def test_speculation_does_not_change_an_answer(two: Engine) -> None:
    prompt = list(b"the mill, the mill, the mill, the m")
    params = SamplingParams(temperature=0.3, seed=1, max_tokens=40, ignore_eos=True)
    plain = run(again(two), [prompt], params)
    drafting = again(two)
    drafting.speculator = Speculator((NgramDrafter(),), StepCosts(), 12, step_clock(torch.device("cpu")))
    assert run(drafting, [prompt], params) == plain


def test_an_interrupted_step_can_be_run_again(two: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given forked choices, and steps that are interrupted at a sum and then run without their copies of blocks."""
    expected = forked(again(two))
    logits(again(two), range(len(PROMPTS)))  # so that blocks have other contents
    compute, stopped = two._runner.run, []

    def often(batch: ScheduledBatch, interrupted: object) -> Tensor | None:
        for at in (0, 1, 3):  # the fourth sum is the last that a layer follows
            calls = itertools.count()
            stopped.append(compute(batch, lambda at=at, calls=calls: next(calls) == at) is None)
            batch = ScheduledBatch(batch.items, [])
        return compute(batch)

    monkeypatch.setattr(two._runner, "run", often)
    assert forked(again(two)) == expected
    assert stopped
    assert all(stopped)


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
    start: Callable[[], Engine], two: Engine, harness: Harness, backend: Backend
) -> None:
    """Given a rank that is killed within a step, and leases that do not expire, the answer has no gap."""
    doomed = start()
    [expected] = run(two, [list(PROMPT)], PARAMS)
    assert run(doomed, [list(PROMPT)], PARAMS) == [expected], "two teams compute the same bits"
    assert doomed.stats().blocks_total == 256, "rank 0 takes no more blocks than the others have"
    signal_rank(doomed, signal.SIGKILL, at=9)
    request = await submitted(backend)
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(pytest.RaisesExc(EngineLost, match="SIGKILL"), flatten_subgroups=True):
            await harness.make(doomed).run()
    assert [worker.state for worker in await backend.registry.workers()] == ["hung"], (
        "it has given its requests back"
    )
    async with harness.worker(two, "b"):
        events = await answer(backend, request.id)
    assert answer_tokens(events) == expected
    labels = {"model": request.model}
    assert harness.metrics.registry.get_sample_value("headrace_worker_takeovers_total", labels) == 1


async def test_a_rank_that_hangs_ends_its_worker(two: Engine, harness: Harness, backend: Backend) -> None:
    before = set(threading.enumerate())
    harness.settings = harness.settings.model_copy(update={"step_timeout": 0.5})
    signal_rank(two, signal.SIGSTOP, at=4)
    await submitted(backend)
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(EngineHung, flatten_subgroups=True):
            await harness.make(two).run()
    [worker] = await backend.registry.workers()
    assert worker.state == "hung", "it has given its requests back"
    two._runner._team.end()
    await wait_until(lambda: "engine" not in {thread.name for thread in set(threading.enumerate()) - before})


@pytest.fixture(scope="module")
def four(eight_heads: Path) -> Iterator[Engine]:
    """Engine of four processes, which share two key-value heads."""
    engine = load(eight_heads, device="cpu", block_size=4, tensor_parallel_size=4)
    yield engine
    engine._runner._team.end()


def test_four_ranks_answer_as_one_process(four: Engine, eight_heads: Path) -> None:
    assert run(four, PROMPTS) == run(load(eight_heads, device="cpu", block_size=4), PROMPTS)
    together = logits(again(four), range(4))
    assert same(logits(again(four, max_num_batched_tokens=4), range(1, 2)), together)


async def test_a_rank_that_ends_while_idle_ends_its_worker(four: Engine, harness: Harness) -> None:
    *_, last = four._runner._team.pids
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(
            pytest.RaisesExc(EngineLost, match="rank 3 .* was ended by SIGKILL"), flatten_subgroups=True
        ):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(harness.make(four).run())
                await asyncio.sleep(0)  # the worker starts
                os.kill(last, signal.SIGKILL)
    for pid in four._runner._team.pids:
        await wait_until(lambda pid=pid: not psutil.pid_exists(pid))


async def test_no_rank_outlives_its_worker() -> None:
    """Given a worker that is killed, and a suspended rank, the rank ends."""
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        status = Path(f"/proc/{pid}/status")
        await wait_until(lambda: int(re.findall(r"SigIgn:\s*(\w+)", status.read_text())[0], 16) & SIGTERM_BIT > 0)
        os.kill(pid, signal.SIGSTOP)
        process.kill()
    await wait_until(lambda: gone(pid))
