"""Batching policies decide when a sequence starts and leaves; its answer is the same."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from shared.errors import ConfigError
from shared.protocol import SamplingParams
from tests.support.engine_driver import GREEDY, Answers, drain, load, run, step
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.scheduling.batching_policies import FixedBatching, Scheduling
from workers.engine_thread import EngineThread

PROMPT = tuple(b"a river runs to the mill")


def ask(engine: Engine, name: str, max_tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    engine.add(EngineRequest(name, PROMPT, params))


def rows_by_step(engine: Engine, late: int) -> list[int]:
    """Return the rows of each step, for answers of 2, 4 and 6 tokens and a later one of 3."""
    rows: list[int] = []
    compute = engine._runner.run

    def counted(batch, interrupted):
        rows.append(len(batch.items))
        return compute(batch, interrupted)

    engine._runner.run = counted
    for name, max_tokens in (("a", 2), ("b", 4), ("c", 6)):
        ask(engine, name, max_tokens)
    answers = Answers()
    while engine.has_work():
        if len(rows) == late and "late" not in answers.finished:
            ask(engine, "late", 3)
            late = -1
        step(engine, answers)
    assert answers.finished == {"a", "b", "c", "late"}
    assert engine.stats().blocks_used == 0
    return rows


@pytest.mark.parametrize(
    ("scheduling", "rows"),
    [
        ("continuous", [3, 3, 3, 3, 2, 1]),
        ("dynamic", [3, 3, 2, 2, 1, 1, 1, 1, 1]),
        ("static", [3, 3, 3, 3, 3, 3, 1, 1, 1]),
    ],
)
def test_policy_decides_when_sequences_start_and_leave(
    scheduling: Scheduling, rows: list[int], llama: Path
) -> None:
    engine = load(llama, scheduling=scheduling, batch_wait=0.0)
    assert rows_by_step(engine, late=2) == rows


@pytest.mark.parametrize("scheduling", ["dynamic", "static"])
def test_answers_are_the_same_with_every_policy(scheduling: Scheduling, llama: Path) -> None:
    """Also with too few blocks, several choices, and aborts."""
    prompts = [list(PROMPT[: 3 + index]) for index in range(12)]
    alone = run(load(llama), prompts)
    engine = load(llama, scheduling=scheduling, batch_wait=0.0, num_kv_blocks=30, block_size=4, max_num_seqs=5)
    assert run(engine, prompts) == alone
    assert engine.stats().preemptions > 0
    params = msgspec.structs.replace(GREEDY, n=3)
    for name in "abc":
        engine.add(EngineRequest(name, PROMPT, params))
    answers = Answers()
    for _ in range(4):
        step(engine, answers)
    assert engine.abort("a")
    rest = drain(engine)
    assert rest.finished == {"b", "c"}


def test_padding_ends_with_the_last_aborted_sequence(llama: Path) -> None:
    engine = load(llama, scheduling="static")
    ask(engine, "short", 1)
    ask(engine, "long", 50)
    answers = Answers()
    step(engine, answers)
    assert answers.finished == {"short"}
    assert engine.stats().running == 2
    assert engine.abort("long")
    assert not engine.has_work()
    assert engine.stats().blocks_used == 0


def test_dynamic_batch_starts_when_full_or_after_its_wait() -> None:
    now = 0.0
    policy = FixedBatching(4, 1.0, pads=False, clock=lambda: now)
    assert policy.max_starts(0, 0) == 0
    assert policy.max_starts(0, 2) == 0
    now = 0.5
    assert policy.max_starts(0, 3) == 0
    now = 1.0
    assert policy.max_starts(0, 3) == 3
    policy.on_started(2)
    assert policy.max_starts(2, 5) == 1, "later sequences wait for the next batch"
    policy.on_started(1)
    now = 1.5
    assert policy.max_starts(3, 4) == 0
    assert policy.max_starts(0, 4) == 4, "a full batch starts at once"
    policy.on_started(4)
    policy.on_started(-1)
    assert policy.max_starts(3, 1) == 1, "a preempted sequence may resume"


def test_engine_loop_waits_for_a_batch_to_fill(llama: Path) -> None:
    done = threading.Event()
    loop = EngineThread(load(llama, scheduling="dynamic", batch_wait=0.05), done.set)
    loop.start()
    try:
        loop.add(EngineRequest("a", PROMPT, msgspec.structs.replace(GREEDY, max_tokens=1)))
        assert done.wait(20)
        assert [output.finished for output in loop.take()] == [True]
    finally:
        loop.stop()


def test_invalid_scheduling_settings_are_refused(llama: Path) -> None:
    for settings in ({"scheduling": "random"}, {"batch_wait": -1.0}, {"tenant_weights": {"a": 0.0}}):
        with pytest.raises(ConfigError, match=next(iter(settings)).replace("tenant_weights", "weight of a")):
            load(llama, **settings)
