"""The buffer between the requests' event loop and the engine thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workers.engine.interface import EngineOutput
from workers.runtimes.upstream.outbox import MIN_NOTICE_INTERVAL_S, Outbox


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


async def test_an_end_is_handed_over_at_once(loop: SteppedLoop, handed: list[list[str]], outbox: Outbox) -> None:
    await outbox.put(EngineOutput("a"), 10)
    loop.run_due()
    await outbox.put(EngineOutput("b"), 10)
    await outbox.put(EngineOutput("c", finished=True), 10)
    before = loop.now
    loop.run_due()
    assert (loop.now, handed) == (before, [["a"], ["b", "c"]])


async def test_outputs_of_one_step_are_noticed_twice_and_no_lone_output_waits(
    loop: SteppedLoop, handed: list[list[str]], outbox: Outbox
) -> None:
    """Given chunks spread over a few milliseconds, the first is handed over at once, all others together."""
    for step in ("a", "b"):
        for chunk in range(5):
            await outbox.put(EngineOutput(f"{step}{chunk}"), 10)
            if chunk == 0:
                before = loop.now
                loop.run_due()
                assert loop.now == before
            loop.now += MIN_NOTICE_INTERVAL_S / 10
        loop.run_due()
        assert loop.now == pytest.approx(before + MIN_NOTICE_INTERVAL_S)
        loop.now += 1
    assert handed == [["a0"], ["a1", "a2", "a3", "a4"], ["b0"], ["b1", "b2", "b3", "b4"]]
    assert not loop.calls
