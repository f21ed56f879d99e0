"""Reads an answer as it grows: subscribe first, replay the log second, then drop what is there already.

It knows the log and the live messages by their contracts alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from shared import keys
from shared.delivery.base import Live, LogPage, TokenLog
from shared.errors import Unavailable
from shared.protocol import TokenEvent, decode_event

OUTAGE = 60.0  # seconds that a reader waits for the store to come back before it gives up
RETRY = 0.5


class Outage:
    """How long the store has been away for one reader: borne for OUTAGE seconds, once it was reached."""

    def __init__(self) -> None:
        self._deadline: float | None = 0.0

    def bear(self, error: Unavailable) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + OUTAGE
        if now > self._deadline:
            raise error

    def over(self) -> None:
        self._deadline = None


async def follow(
    log: TokenLog, live: Live, request_id: str, after: int, *, idle: float
) -> AsyncGenerator[TokenEvent | None]:
    """TokenLog.follow, over any log's `read`.

    Once it has read the log, it waits out an outage of the store of up to OUTAGE seconds, as silence.
    """
    async with live.subscribe(keys.live_channel(request_id)) as subscription:
        seen, behind, waited = after, True, False
        outage = Outage()
        while True:
            if behind:
                try:
                    page = await log.read(request_id, seen)
                    if waited and page.complete and not page.events:
                        page = await _end(log, request_id)
                except Unavailable as error:
                    outage.bear(error)
                    yield None
                    await asyncio.sleep(RETRY)
                    continue
                outage.over()
                for event in page.events:
                    seen = event.last_seq
                    yield event
                if page.complete:
                    return
                behind, waited = bool(page.events), True
                continue
            message = await subscription.get(idle)
            if message is None:
                yield None
            live_event = decode_event(message) if isinstance(message, bytes) else None
            if live_event is None or live_event.seq > seen + 1:
                behind = True
            elif live_event.last_seq <= seen:
                behind = live_event.terminal is not None  # it began beyond the end
            else:
                yield live_event.after(seen)
                seen = live_event.last_seq
                if live_event.terminal:
                    return


async def _end(log: TokenLog, request_id: str) -> LogPage:
    """The last event of an answer that has ended, for a reader from beyond it. Raises NotFound, Unavailable."""
    record = await log.record(request_id)
    return await log.read(request_id, -1 if record is None else record.completion_tokens - 1)
