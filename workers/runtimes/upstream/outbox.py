"""Bounded buffer of outputs between the event loop of the requests and the engine thread of the worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from workers.engine.interface import EngineOutput

MAX_BUFFERED_BYTES = 4 * 2**20  # of the chunks; a reader waits while there are more, so that the server waits too
MAX_STEP_S = 0.005  # for which the first chunk of a step of the server's engine waits for the others


class Outbox:
    """Outputs in order. The loop's tasks put, another thread takes.

    A server sends the chunks of one step of its engine spread over some milliseconds, one to each answer. They are
    handed over together, since each time wakes the worker's threads, Redis and the API.

    Args:
        loop: runs the tasks that put.
        on_output: called in the loop's thread when outputs are to be taken: once each run that had outputs at the
            last time, and has not ended, has one again, but at most MAX_STEP_S after the first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_output: Callable[[], None]) -> None:
        self._loop = loop
        self._on_output = on_output
        self._lock = threading.Lock()
        self._outputs: list[EngineOutput] = []
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._awaited: set[str] = set()  # runs with outputs at the last time, and none since
        self._notice: asyncio.Handle | None = None
        self._due = 0.0  # the time of the notice

    @property
    def has_outputs(self) -> bool:
        return bool(self._outputs)

    @property
    def is_full(self) -> bool:
        return self._bytes >= MAX_BUFFERED_BYTES

    async def room(self) -> None:
        """Wait until the outputs have been taken, if the buffer is full."""
        while not self._room.is_set():
            await self._room.wait()

    def put(self, output: EngineOutput, size: int) -> None:
        """Add an output that a chunk of `size` bytes gave."""
        with self._lock:
            first = not self._outputs
            self._outputs.append(output)
            self._bytes += size
            if self.is_full:
                self._room.clear()
            self._awaited.discard(output.job_id)
            complete = not self._awaited
        if complete:
            self._notify_at(self._loop.time())
        elif first:
            self._notify_at(self._loop.time() + MAX_STEP_S)

    def take(self) -> list[EngineOutput]:
        """Return all outputs, in order."""
        with self._lock:
            outputs, self._outputs = self._outputs, []
            was_full, self._bytes = self.is_full, 0
            ended = {output.job_id for output in outputs if output.finished}
            self._awaited = {output.job_id for output in outputs} - ended
        if was_full:
            self._loop.call_soon_threadsafe(self._room.set)
        return outputs

    def _notify_at(self, time: float) -> None:
        if self._notice is not None:
            if self._due <= time:
                return
            self._notice.cancel()
        self._due = time
        self._notice = self._loop.call_at(time, self._notify)

    def _notify(self) -> None:
        self._notice = None
        self._on_output()
