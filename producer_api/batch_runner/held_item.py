"""Claimed item of a batch: the work on it, and, for a chunk, its lines in progress and their outcomes."""

from __future__ import annotations

import asyncio

from producer_api.batch_runner.lines import Outcome
from producer_api.batch_runner.work_folder import WorkFolder
from shared.batches.store import Item


class HeldItem:
    """One item. `work` ends when the item is done; `fed` is set when all its lines were started."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.fed = asyncio.Event()
        self.work: asyncio.Task[None] | None = None
        self.lines: list[asyncio.Task[Outcome]] = []

    def counts(self) -> tuple[int, int]:
        """Return the numbers of lines completed and failed so far."""
        ended = [line for line in self.lines if line.done() and not line.cancelled() and line.exception() is None]
        completed = sum(line.result().completed for line in ended)
        return completed, len(ended) - completed

    async def write(self, folder: WorkFolder) -> bool:
        """Wait for all lines and write their outcomes to disk, in order. Return True if some lines expired."""
        outcomes = await asyncio.gather(*self.lines)
        output = [outcome.data for outcome in outcomes if outcome.completed]
        errors = [outcome.data for outcome in outcomes if not outcome.completed]
        await asyncio.to_thread(folder.write, self.item, "output", output)
        await asyncio.to_thread(folder.write, self.item, "errors", errors)
        return any(outcome.expired for outcome in outcomes)

    def cancel_lines(self) -> None:
        """Stop waiting for the lines. Their requests continue, and the next holder joins them."""
        for line in self.lines:
            line.cancel()
