"""An item of a batch's work in the hands of its holder; of a chunk, the lines under way and what became of them."""

from __future__ import annotations

import asyncio

from producer_api.batch_runner.lines import Outcome
from producer_api.batch_runner.work_folder import Folder
from shared.batches.store import Item


class Held:
    """One item; `work` ends when it is done, `fed` is set when all its lines are under way."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.fed = asyncio.Event()
        self.work: asyncio.Task[None] | None = None
        self.lines: list[asyncio.Task[Outcome]] = []

    def counts(self) -> tuple[int, int]:
        """Lines completed and failed so far."""
        ended = [line for line in self.lines if line.done() and not line.cancelled() and line.exception() is None]
        completed = sum(line.result().completed for line in ended)
        return completed, len(ended) - completed

    async def write(self, folder: Folder) -> bool:
        """Once all lines have ended, make their outcomes durable, in order; whether some came too late to run."""
        outcomes = await asyncio.gather(*self.lines)
        output = [outcome.data for outcome in outcomes if outcome.completed]
        errors = [outcome.data for outcome in outcomes if not outcome.completed]
        await asyncio.to_thread(folder.write, self.item, "output", output)
        await asyncio.to_thread(folder.write, self.item, "errors", errors)
        return any(outcome.expired for outcome in outcomes)

    def drop(self) -> None:
        """Let go of the lines; their requests go on by themselves, for the next holder to find."""
        for line in self.lines:
            line.cancel()
