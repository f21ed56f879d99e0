"""The buffer between the requests' event loop and the engine thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from workers.engine.interface import EngineOutput
from workers.runtimes.upstream.outbox import MIN_NOTICE_INTERVAL_S, Outbox


class SteppedLoop(asyncio.SelectorEventLoop):
    """Loop that does not run: it keeps the one call that is due, and its time is set by the test."""

    now = 100.0
    due: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None], *args: object, **options: object) -> None:  # type: ignore[override]
        assert self.due is None
        self.due = (when, callback)

    def run_due(self) -> None:
        assert self.due is not None
        (when, callback), self.due = self.due, None
        self.now = max(self.now, when)
        callback()


async def test_outputs_of_one_step_are_noticed_twice_and_no_lone_output_waits() -> None:
    """Given chunks spread over a few milliseconds, the first is handed over at once, all others together."""
    loop = SteppedLoop()
    handed: list[list[str]] = []
    outbox = Outbox(loop, lambda: handed.append([output.job_id for output in outbox.take()]))
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
    assert loop.due is None
    loop.close()
