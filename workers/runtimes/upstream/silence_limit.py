"""Limit on the time for which an upstream server sends no part of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from workers.runtimes.upstream.failures import Broken


class SilenceLimit:
    """Limit on the waits of one task. It counts from its start, and from each `extend`.

    One timer serves all waits, since each token passes through here; a timer that fires early is set again.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False
        self._waiting = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._due = self._loop.time() + self._seconds
        self._timer = self._loop.call_at(self._due, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def extend(self, seconds: float) -> None:
        """Let the next wait end after `seconds`."""
        self._due = self._loop.time() + seconds
        if self._due < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    async def await_part(self, events: AsyncIterator[list[bytes]]) -> list[bytes] | None:
        """Return the next events, None at the end. Raises Broken if the limit is reached first."""
        self._waiting = True
        try:
            return await anext(events)
        except StopAsyncIteration:
            return None
        except asyncio.CancelledError:
            if self._expired and self._task.uncancel() <= self._cancelling:
                raise Broken(f"the upstream server was silent for {self._seconds:g} s") from None
            raise
        finally:
            self._waiting = False

    def _look(self) -> None:
        now = self._loop.time()
        if not self._waiting:  # this worker holds up the answer, not the server
            self._due = max(self._due, now + self._seconds)
        if now >= self._due:
            self._expired = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(self._due, self._look)
