"""Bounded buffer of outputs between the event loop of the requests and the engine thread of the worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from workers.engine.interface import EngineOutput

MAX_BUFFERED_BYTES = 4 * 2**20  # of the chunks; a reader waits while there are more, so that the server waits too
MIN_NOTICE_INTERVAL_S = 0.005  # a server sends the chunks of one step of its engine spread over some milliseconds


class Outbox:
    """Outputs in order. The loop's tasks put, another thread takes.

    Args:
        loop: runs the tasks that put.
        on_output: called in the loop's thread after the buffer was empty and got an output: soon, but at most once
            in MIN_NOTICE_INTERVAL_S, unless a run ends. So the outputs that follow the first of a step are written
            together, and a seat becomes free at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_output: Callable[[], None]) -> None:
        self._loop = loop
        self._on_output = on_output
        self._lock = threading.Lock()
        self._outputs: list[EngineOutput] = []
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._next_notice = loop.time()
        self._notice: asyncio.Handle | None = None  # that is due

    @property
    def has_outputs(self) -> bool:
        return bool(self._outputs)

    async def put(self, output: EngineOutput, size: int) -> None:
        """Add an output that a chunk of `size` bytes gave, once there is room."""
        while not self._room.is_set():
            await self._room.wait()
        with self._lock:
            first = not self._outputs
            self._outputs.append(output)
            self._bytes += size
            if self._bytes >= MAX_BUFFERED_BYTES:
                self._room.clear()
        if output.finished:
            self._notify_at(self._loop.time())
        elif first:
            self._notify_at(self._next_notice)

    def take(self) -> list[EngineOutput]:
        """Return all outputs, in order."""
        with self._lock:
            outputs, self._outputs = self._outputs, []
            was_full, self._bytes = self._bytes >= MAX_BUFFERED_BYTES, 0
        if was_full:
            self._loop.call_soon_threadsafe(self._room.set)
        return outputs

    def _notify_at(self, time: float) -> None:
        if self._notice is not None:
            self._notice.cancel()
        self._notice = self._loop.call_at(time, self._notify)

    def _notify(self) -> None:
        self._notice, self._next_notice = None, self._loop.time() + MIN_NOTICE_INTERVAL_S
        self._on_output()
