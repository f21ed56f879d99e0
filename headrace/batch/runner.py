"""Run all lines of a batch, a bounded number at a time, and write their records to the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

from headrace.batch.input_file import Line
from headrace.batch.journal import Journal
from headrace.batch.output_record import Record
from headrace.batch.progress import RunCounts
from shared.errors import HeadraceError


class LineRunner(Protocol):
    """Interface for running one line: send its request, and return the record of its answer."""

    async def result(self, line: Line) -> Record:
        """Return the record of a line. Raises HeadraceError if the run cannot continue."""


class Runner:
    """One batch run, new or resumed.

    Args:
        lines: the lines that have no record yet.
        concurrency: maximum number of lines in flight.
    """

    def __init__(
        self,
        lines: Iterator[Line],
        journal: Journal,
        line_runner: LineRunner,
        counts: RunCounts,
        *,
        concurrency: int,
    ) -> None:
        self._lines = lines
        self._journal = journal
        self._line_runner = line_runner
        self._counts = counts
        self._concurrency = concurrency
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: HeadraceError | None = None
        self.stopped = False

    async def run(self) -> None:
        """Run until all lines are done, or `stop`. Raises HeadraceError; finished lines stay in the journal."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            async with asyncio.TaskGroup() as workers:
                self._tasks = [workers.create_task(self._work()) for _ in range(self._concurrency)]
            if not writing.done():
                await self._journal.end()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End the run. Requests in flight continue on the server; the next run joins them."""
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
                record = await self._record(line)
                await self._journal.add(record)
                self._counts.add(record)
        except HeadraceError as error:
            self._fail(error)

    async def _record(self, line: Line) -> Record:
        if line.error is not None:
            return Record.from_bad_line(self._journal.run, line, line.error)
        return await self._line_runner.result(line)

    def _fail(self, error: HeadraceError) -> None:
        self._failure = self._failure or error
        self.stop()
