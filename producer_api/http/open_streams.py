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

from shared.errors import Unavailable

Result = TypeVar("Result")


def stopping() -> Unavailable:
    """What whoever cannot go on here is told."""
    return Unavailable("the server is stopping", retry_after=1)


class ClientGone(Exception):
    """The client closed its connection: there is nobody to answer."""


class Stopping(Exception):
    """The server ends what is still open."""


class Attendance:
    """The answers that clients are waiting for: counted, and ended when the server stops, in two steps."""

    def __init__(self, open_answers: Gauge) -> None:
        self._gauge = open_answers
        self._stops: dict[asyncio.Future[None], bool] = {}
        self._stopped = False
        self.draining = False

    def __len__(self) -> int:
        return len(self._stops)

    def drain(self) -> None:
        """The server is stopping: end at once what its client can have from another replica."""
        self.draining = True
        self._end(resumable_only=True)

    def stop(self) -> None:
        """The server stops now: end all."""
        self.draining = self._stopped = True
        self._end(resumable_only=False)

    def _end(self, *, resumable_only: bool) -> None:
        for stop, resumable in self._stops.items():
            if not stop.done() and (resumable or not resumable_only):
                stop.set_result(None)

    async def attend(
        self, work: Coroutine[Any, Any, Result], leaving: Coroutine[Any, Any, None] | None, *, resumable: bool
    ) -> Result:
        """The result of `work`, unless ClientGone or Stopping comes first: then `work` is cancelled.

        Args:
            leaving: ends when the client has left; None where the caller is cancelled then.
            resumable: its client can come back for the rest.
        """
        with self._counted(resumable) as stop:
            task = asyncio.create_task(work)
            others: list[asyncio.Future[Any]] = [] if leaving is None else [asyncio.create_task(leaving)]
            ends: list[asyncio.Future[Any]] = [task, stop, *others]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                raise Stopping if stop.done() else ClientGone
            finally:
                for each in (task, *others):
                    each.cancel()
                await asyncio.gather(task, *others, return_exceptions=True)

    @contextmanager
    def _counted(self, resumable: bool) -> Iterator[asyncio.Future[None]]:
        stop = asyncio.get_running_loop().create_future()
        if self._stopped or (self.draining and resumable):
            stop.set_result(None)
        self._stops[stop] = resumable
        self._gauge.inc()
        try:
            yield stop
        finally:
            del self._stops[stop]
            self._gauge.dec()


async def disconnect(receive: Receive) -> None:
    """Until the client of an HTTP request has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
