"""Takes lines from the input to the output, a bounded number at a time. It does not know how a line is run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

from headrace.batch.input_file import Line
from headrace.batch.journal import Journal
from headrace.batch.output_record import Record, of_bad_line
from headrace.batch.progress import Meter
from shared.errors import HeadraceError


class Way(Protocol):
    """How a request gets to a worker, and its answer back."""

    async def result(self, line: Line) -> Record:
        """Raises HeadraceError where the run cannot go on."""


class Runner:
    """One run, from where its journal stands.

    Args:
        lines: those that have no record yet.
        concurrency: most lines in flight.
    """

    def __init__(
        self, lines: Iterator[Line], journal: Journal, way: Way, meter: Meter, *, concurrency: int
    ) -> None:
        self._lines = lines
        self._journal = journal
        self._way = way
        self._meter = meter
        self._concurrency = concurrency
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: HeadraceError | None = None
        self.stopped = False

    async def run(self) -> None:
        """Until all is done, or `stop`. Raises HeadraceError; what was done by then is in the journal."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            async with asyncio.TaskGroup() as workers:
                self._tasks = [workers.create_task(self._work()) for _ in range(self._concurrency)]
            if not writing.done():
                await self._journal.end()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Leave what is in flight to itself: the next run joins it."""
        self.stopped = True
        for task in self._tasks:
            task.cancel()

    async def _write(self) -> None:
        try:
            await self._journal.write()
        except HeadraceError as error:
            self._fail(error)

    async def _work(self) -> None:
        try:
            for line in self._lines:
                self._meter.flying += 1
                try:
                    record = await self._record(line)
                finally:
                    self._meter.flying -= 1
                await self._journal.add(record)
                self._meter.see(record)
        except HeadraceError as error:
            self._fail(error)

    async def _record(self, line: Line) -> Record:
        if line.error is not None:
            return of_bad_line(self._journal.run, line, line.error)
        return await self._way.result(line)

    def _fail(self, error: HeadraceError) -> None:
        self._failure = self._failure or error
        self.stop()
