"""Works for a client only as long as the client is there and the server goes on.

It knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prometheus_client import Gauge
from starlette.types import Receive

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection: there is nobody to answer."""


class Stopping(Exception):
    """The server ends what is still open."""


class Attendance:
    """The answers that clients are waiting for: counted, and ended together when the server stops."""

    def __init__(self, open_answers: Gauge) -> None:
        self._gauge = open_answers
        self._stops: set[asyncio.Future[None]] = set()
        self._stopping = False

    def stop(self) -> None:
        """End all that is open, and at once all that comes later."""
        self._stopping = True
        for stop in self._stops:
            if not stop.done():
                stop.set_result(None)

    async def attend(self, receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, unless ClientGone or Stopping comes first: then `work` is cancelled."""
        with self._counted() as stop:
            task = asyncio.create_task(work)
            leaving = asyncio.create_task(_disconnect(receive))
            try:
                await asyncio.wait((task, leaving, stop), return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                raise Stopping if stop.done() else ClientGone
            finally:
                task.cancel()
                leaving.cancel()
                await asyncio.gather(task, leaving, return_exceptions=True)

    @contextmanager
    def _counted(self) -> Iterator[asyncio.Future[None]]:
        stop = asyncio.get_running_loop().create_future()
        if self._stopping:
            stop.set_result(None)
        self._stops.add(stop)
        self._gauge.inc()
        try:
            yield stop
        finally:
            self._stops.discard(stop)
            self._gauge.dec()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
