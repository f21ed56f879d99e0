"""Timeouts of one length, which share a timer of the event loop.

A timer of its own, as `asyncio.timeout` has, costs a wait several times what this costs, and nearly every wait ends
long before its timer does.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Timeouts:
    """Timeouts of `seconds` each, in one event loop at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # of those that are entered, by the loop's clock; the first to end first
        self._ends: dict[Timeout, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ringing = False  # a timer is set, for the first end or an earlier time

    def start(self) -> Timeout:
        """Return a context that lasts `seconds` from its entry."""
        return Timeout(self)

    def add(self, timeout: Timeout) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the last one was closed, and its timer with it
            self._loop, self._ringing = loop, False
            self._ends.clear()
        end = self._ends[timeout] = loop.time() + self._seconds
        if not self._ringing:
            self._set_timer(loop, end)

    def remove(self, timeout: Timeout) -> None:
        self._ends.pop(timeout, None)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, end: float) -> None:
        self._ringing = True
        loop.call_at(end, self._ring, loop, end)

    def _ring(self, loop: asyncio.AbstractEventLoop, time: float) -> None:
        """Expire what ends at `time` or before; a loop may ring a moment early by its own clock."""
        if loop is not self._loop:
            return
        self._ringing = False
        while self._ends:
            timeout, end = next(iter(self._ends.items()))
            if end > time:
                self._set_timer(loop, end)
                return
            del self._ends[timeout]
            timeout.expire()


class Timeout:
    """Context that cancels its task when it lasts too long, and raises TimeoutError, as `asyncio.timeout` does."""

    __slots__ = ("_cancelling", "_expired", "_task", "_timeouts")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "not in a task"
        self._task: asyncio.Task[Any] = task
        self._cancelling = task.cancelling()
        self._timeouts.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._expired:
            self._timeouts.remove(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
