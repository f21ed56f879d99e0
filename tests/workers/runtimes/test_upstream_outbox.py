"""The buffer between the requests' event loop and the engine thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workers.engine.interface import EngineOutput
from workers.runtimes.upstream.outbox import MAX_STEP_S, Outbox


class SteppedLoop(asyncio.SelectorEventLoop):
    """Loop that does not run: it keeps the calls that are due, and its time is set by the test."""

    now = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self.calls.append(asyncio.TimerHandle(when, callback, args, self))
        return self.calls[-1]

    def run_due(self) -> None:
        """Run the one call that has not been cancelled, at its time."""
        [due] = [call for call in self.calls if not call.cancelled()]
        self.calls.clear()
        self.now = max(self.now, due.when())
        due._run()


@pytest.fixture
def loop() -> Iterator[SteppedLoop]:
    made = SteppedLoop()
    yield made
    made.close()


@pytest.fixture
def handed() -> list[list[str]]:
    return []


@pytest.fixture
def outbox(loop: SteppedLoop, handed: list[list[str]]) -> Outbox:
    made = Outbox(loop, lambda: handed.append([output.job_id for output in made.take()]))
    return made


def put(outbox: Outbox, run: str, *, finished: bool = False) -> None:
    outbox.put(EngineOutput(run, finished=finished), 10)


def put_step(loop: SteppedLoop, outbox: Outbox, runs: str) -> float:
    """Put an output of each run, spread over a part of a step; return when the first was put."""
    began = loop.now
    for run in runs:
        put(outbox, run)
        loop.now += MAX_STEP_S / 10
    return began


def test_the_outputs_of_one_step_are_handed_over_together(
    loop: SteppedLoop, handed: list[list[str]], outbox: Outbox
) -> None:
    """Given answers that got outputs together before, they are handed over once the last of them has one again."""
    put_step(loop, outbox, "abc")
    loop.run_due()
    for _ in range(2):
        put_step(loop, outbox, "abc")
        before = loop.now
        loop.run_due()
        assert loop.now == before
    assert handed == [["a", "b", "c"]] * 3
    assert not loop.calls


def test_a_lone_output_does_not_wait_and_others_wait_briefly(
    loop: SteppedLoop, handed: list[list[str]], outbox: Outbox
) -> None:
    for _ in range(2):
        put(outbox, "a")
        before = loop.now
        loop.run_due()
        assert loop.now == before
    began = put_step(loop, outbox, "bc")  # and none of the answer that had one before
    loop.run_due()
    assert loop.now == pytest.approx(began + MAX_STEP_S)
    assert handed == [["a"], ["a"], ["b", "c"]]


def test_a_run_that_has_ended_is_not_waited_for(loop: SteppedLoop, handed: list[list[str]], outbox: Outbox) -> None:
    put_step(loop, outbox, "ab")
    put(outbox, "b", finished=True)
    loop.run_due()
    put(outbox, "a")
    before = loop.now
    loop.run_due()
    assert (loop.now, handed) == (before, [["a", "b", "b"], ["a"]])
