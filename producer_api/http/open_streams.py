"""Ends work for a client that disconnects, and on shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.types import Receive

from shared.errors import Unavailable
from shared.metrics.series import Values

Result = TypeVar("Result")


def shutdown_error() -> Unavailable:
    """Return the 503 sent to clients that a shutdown cuts off."""
    return Unavailable("the server is shutting down", retry_after=1)


class ClientGone(Exception):
    """The client closed its connection."""


class Stopping(Exception):
    """The server is shutting down and ends all open answers."""


class OpenAnswers:
    """Answers that clients are waiting for: counted, and ended in two steps when the server shuts down."""

    def __init__(self, open_answers: Values) -> None:
        self._gauge = open_answers
        self._stops: dict[asyncio.Future[None], bool] = {}
        self._stopped = False
        self.draining = False

    def __len__(self) -> int:
        return len(self._stops)

    def drain(self) -> None:
        """Begin the shutdown: end at once the answers that clients can resume on another replica."""
        self.draining = True
        self._end(resumable_only=True)

    def stop(self) -> None:
        """End all answers: the grace time is over."""
        self.draining = self._stopped = True
        self._end(resumable_only=False)

    def _end(self, *, resumable_only: bool) -> None:
        for stop, resumable in self._stops.items():
            if not stop.done() and (resumable or not resumable_only):
                stop.set_result(None)

    async def run(
        self, work: Coroutine[Any, Any, Result], disconnected: Coroutine[Any, Any, None] | None, *, resumable: bool
    ) -> Result:
        """Return the result of `work`; if the client or the server ends first, cancel it.

        Args:
            disconnected: ends when the client has disconnected; None where the caller is cancelled then.
            resumable: the client can resume the answer on another replica.

        Raises:
            ClientGone, Stopping.
        """
        with self._counted(resumable) as stop:
            task = asyncio.create_task(work)
            others: list[asyncio.Future[Any]] = [] if disconnected is None else [asyncio.create_task(disconnected)]
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
    """Return when the client of an HTTP request has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
