"""Timeouts that share a timer."""

from __future__ import annotations

import asyncio

import pytest

from shared.runtime.timeouts import Timeouts
from tests.support.loop_clock import stopped_clock, turns


async def wait(timeouts: Timeouts, *ended: asyncio.Event) -> None:
    for each in ended:
        with timeouts.start():
            await each.wait()


async def test_each_wait_ends_after_its_own_time() -> None:
    """Waits that end in time, or are cancelled, neither expire later nor keep others from it."""
    timeouts, ended = Timeouts(10.0), asyncio.Event()
    with stopped_clock() as clock:
        waits = []
        for _ in range(4):
            waits.append(asyncio.create_task(wait(timeouts, ended if len(waits) == 1 else asyncio.Event())))
            await turns()
            await clock.advance(2.0)
        ended.set()
        waits[2].cancel()
        await turns()
        assert [each.done() for each in waits] == [False, True, True, False]
        assert waits[2].cancelled()
        await clock.advance(1.5)
        assert not waits[0].done(), "it began 9.5 s ago"
        await clock.advance(0.5)
        with pytest.raises(TimeoutError):
            await waits[0]
        await clock.advance(5.5)
        assert not waits[3].done(), "it began 9.5 s ago"
        await clock.advance(10.0)
        with pytest.raises(TimeoutError):
            await waits[3]
        first, second = asyncio.Event(), asyncio.Event()
        twice = asyncio.create_task(wait(timeouts, first, second))
        for ended in (first, second):
            await turns()
            await clock.advance(9.5)
            ended.set()
        await twice


async def test_waits_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timeouts, set_timers = asyncio.get_running_loop(), Timeouts(10.0), list[float]()
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda when, *args: (set_timers.append(when), call_at(when, *args))[1])
    for _ in range(3):
        ended = asyncio.Event()
        waits = [asyncio.create_task(wait(timeouts, ended)) for _ in range(3)]
        await turns()
        ended.set()
        await asyncio.gather(*waits)
    assert len(set_timers) == 1


async def test_a_cancellation_is_not_taken_for_a_timeout() -> None:
    """Given a task that is cancelled in the moment in which its time is over, it ends as cancelled."""
    timeouts = Timeouts(10.0)
    with stopped_clock() as clock:
        waiting = asyncio.create_task(wait(timeouts, asyncio.Event()))
        await turns()
        clock.now += 10.0
        asyncio.get_running_loop().call_at(clock.now, waiting.cancel)
        await asyncio.wait([waiting])
    assert waiting.cancelled()


def test_timeouts_outlive_a_loop() -> None:
    """Given a loop that ended with a timer, those of the next loop have one of their own."""
    timeouts = Timeouts(10.0)

    async def expire(after: float) -> None:
        with stopped_clock() as clock:
            waiting = asyncio.create_task(wait(timeouts, asyncio.Event()))
            await turns()
            await clock.advance(after)
            if waiting.done():
                raise waiting.exception() or AssertionError
            waiting.cancel()

    asyncio.run(expire(5.0))
    with pytest.raises(TimeoutError):
        asyncio.run(expire(10.0))
