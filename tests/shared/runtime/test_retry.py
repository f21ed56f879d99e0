"""The retry loop of background tasks."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from shared.errors import Unavailable
from shared.runtime import retry
from tests.support.waiting import LIMIT_S


class Steps:
    """Work whose calls end as a list says: an error is raised, None returns."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if (error := self.ends.pop(0)) is not None:
            raise error


async def test_work_runs_again_after_an_outage_and_a_return(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Steps(Unavailable("Redis is away"), None, KeyError("bug"))
    monkeypatch.setattr(retry, "log", retry.log.bind())  # a logger that was not cached before logs were captured
    with capture_logs() as lines, pytest.raises(KeyError):
        await asyncio.wait_for(retry.run_forever(work, pause_s=0.0, failure_event="sweep_failed"), LIMIT_S)
    assert work.calls == 3
    assert lines == [{"event": "sweep_failed", "error": "Redis is away", "log_level": "warning"}]


async def test_the_loop_pauses_between_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(KeyError):
        await retry.run_forever(Steps(None, Unavailable(""), KeyError()), pause_s=7.0, failure_event="failed")
    assert pauses == [7.0, 7.0]


async def test_cancelling_ends_the_loop() -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(retry.run_forever(work, pause_s=0.0, failure_event="failed"))
    await asyncio.wait_for(started.wait(), LIMIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
