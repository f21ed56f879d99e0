"""Classes and tenants affect who waits but not the answers; an urgent arrival abandons a step of batch work."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from shared.protocol import PriorityClass, SamplingParams
from tests.support.engine_driver import GREEDY, Answers, drain, load, run, step
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.model_runner import Runner
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine_thread import EngineThread
from workers.scripted_engine import ScriptedEngine

INTERACTIVE, STANDARD, BATCH = PriorityClass
PROMPT = tuple(b"a river runs to the mill, and the mill ")


def test_answers_do_not_depend_on_the_class(llama: Path) -> None:
    """Given requests of all classes arriving one by one, few blocks and few seats, answers are as when alone."""
    rng = random.Random(8)
    prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 60))] for _ in range(24)]
    alone = run(load(llama), prompts)
    engine = load(llama, num_kv_blocks=40, block_size=4, max_num_batched_tokens=20, max_num_seqs=5)
    answers = Answers()
    for index, prompt in enumerate(prompts):
        priority = list(PriorityClass)[2 - index % 3]
        engine.add(EngineRequest(str(index), tuple(prompt), GREEDY, priority=priority, tenant=f"t{index % 4}"))
        step(engine, answers)
    while engine.has_work():
        step(engine, answers)
    assert engine.stats().preemptions > 5
    assert [answers.ids(str(index)) for index in range(24)] == alone


def test_interactive_request_overtakes_batch_work(llama: Path) -> None:
    engine = load(llama, max_num_seqs=2)
    for name in "abc":
        engine.add(EngineRequest(name, PROMPT, GREEDY, priority=BATCH))
    answers = Answers()
    for _ in range(3):
        step(engine, answers)
    engine.add(EngineRequest("now", PROMPT, GREEDY, priority=INTERACTIVE))
    step(engine, answers)
    assert len(answers.ids("now")) == 1
    assert len(answers.ids("a")) == 3, "its row was left out"


class Interruptible(Runner):
    """Runner that returns None for an abandoned step, as `ModelRunner.run` does."""

    def __init__(self, run: Callable[..., Tensor | None]) -> None:
        self._run = run
        self.asked: list[bool] = []  # for each step, whether it might be abandoned

    def run(self, batch: ScheduledBatch, interrupted: Callable[[], bool] | None = None) -> Tensor | None:
        self.asked.append(interrupted is not None)
        if interrupted is not None and interrupted():
            return None
        return self._run(batch)


def test_abandoned_step_has_no_effect(llama: Path) -> None:
    """Given batch work and an urgent arrival during a step, nothing advances and the answers are the same."""
    engine = load(llama)
    alone = run(engine, [list(PROMPT), list(PROMPT[:7])])
    engine._runner = runner = Interruptible(engine._runner.run)
    urgent = threading.Event()
    engine.abandon_when(urgent.is_set)
    engine.add(EngineRequest("a", PROMPT, GREEDY, priority=BATCH))
    answers = Answers()
    for interrupted in (False, True, False, True, True):
        before = len(answers.ids("a"))
        (urgent.set if interrupted else urgent.clear)()
        step(engine, answers)
        assert len(answers.ids("a")) == before + (not interrupted)
    engine.add(EngineRequest("now", PROMPT[:7], GREEDY, priority=STANDARD))
    step(engine, answers)
    assert len(answers.ids("now")) == 1, "a step without batch work is not abandoned"
    assert runner.asked == [True] * 5 + [False]
    urgent.clear()
    while engine.has_work():
        step(engine, answers)
    assert runner.asked[6], "one that has rows of batch work beside others may be"
    assert [answers.ids("a"), answers.ids("now")] == alone


class Watched(ScriptedEngine):
    """Engine that signals when a step begins, and ends the step when an urgent request arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.urgent: Callable[[], bool] = lambda: False
        self.abandoned = 0

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        self.urgent = urgent

    def step(self) -> list[EngineOutput]:
        self.begun.set()
        if len(self._runs) > 1:
            return super().step()
        while not self.urgent():
            pass
        self.abandoned += 1
        return []


def test_engine_loop_signals_urgent_arrivals() -> None:
    """Given an endless step of batch work, a standard arrival does not end it and an interactive one does."""
    engine, notified = Watched(), threading.Event()
    loop = EngineThread(engine, notified.set)
    loop.start()
    try:
        loop.add(EngineRequest("a", (1, 2), SamplingParams(max_tokens=2), priority=BATCH))
        assert engine.begun.wait(10)
        loop.add(EngineRequest("b", (1,), SamplingParams(max_tokens=2), priority=STANDARD))
        assert not engine.urgent()
        loop.add(EngineRequest("c", (3,), SamplingParams(max_tokens=2), priority=INTERACTIVE))
        assert notified.wait(10)
        assert engine.abandoned == 1
    finally:
        loop.stop()


def test_abort_takes_effect_before_the_next_step() -> None:
    """Given a long request in the engine's thread, it has no output after the abort."""
    engine, notified = ScriptedEngine(), threading.Event()
    loop = EngineThread(engine, notified.set)
    loop.add(EngineRequest("a", (1, 2), SamplingParams(max_tokens=5000)))
    loop.abort("a")
    loop.add(EngineRequest("b", (1, 2), SamplingParams(max_tokens=1)))
    loop.start()
    try:
        assert notified.wait(10)
        assert {output.job_id for output in loop.take()} == {"b"}
    finally:
        loop.stop()


def test_cancelled_request_leaves_within_one_step(llama: Path) -> None:
    engine = load(llama)
    engine.add(EngineRequest("a", PROMPT, GREEDY))
    engine.add(EngineRequest("b", PROMPT, GREEDY))
    answers = Answers()
    step(engine, answers)
    assert engine.abort("a")
    assert {output.job_id for output in engine.step()} == {"b"}
    drain(engine)


@pytest.mark.parametrize("priority", PriorityClass)
def test_resumed_answer_is_the_same_in_every_class(priority: PriorityClass, llama: Path) -> None:
    engine = load(llama, num_kv_blocks=24, block_size=4, max_num_batched_tokens=10)
    whole = run(load(llama), [list(PROMPT)])[0]
    for index in range(4):
        resumed = (tuple(whole[: 5 * index]),)
        engine.add(EngineRequest(str(index), PROMPT, GREEDY, resumed, priority=priority))
    answers = drain(engine)
    assert [answers.ids(str(index)) for index in range(4)] == [whole[5 * index :] for index in range(4)]
