"""Readers that follow an answer: subscribe first, replay the log second, then skip what was already read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from shared.errors import NotFound, Unavailable
from shared.protocol import ErrorInfo, RequestState, Terminal, TokenEvent, Usage, decode_event
from shared.redis import keys
from shared.redis.foreign import UNREADABLE
from shared.token_log.answer import nothing_after
from shared.token_log.interface import LOST, Live, LogPage, TokenLog

MAX_OUTAGE_S = 60.0  # of the store, before a reader gives up
RETRY_S = 0.5


class Outage:
    """Outage of the store for one reader, tolerated for MAX_OUTAGE_S if the store was reached before."""

    def __init__(self) -> None:
        self._deadline: float | None = 0.0

    def tolerate(self, error: Unavailable) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + MAX_OUTAGE_S
        if now > self._deadline:
            raise error

    def over(self) -> None:
        self._deadline = None


async def follow(
    log: TokenLog, live: Live, job_id: str, after: int, *, idle: float
) -> AsyncGenerator[TokenEvent | None]:
    """Implement TokenLog.follow by any log's `read`.

    After the first read, an outage of the store of up to MAX_OUTAGE_S appears as silence. If another program
    deleted a part of the log, the answer ends with LOST.
    """
    async with live.subscribe(keys.live_channel(job_id)) as subscription:
        seen, behind, waited = after, True, False
        outage = Outage()
        while True:
            if behind:
                try:
                    page = await _read(log, job_id, seen, waited=waited)
                except Unavailable as error:
                    outage.tolerate(error)
                    yield None
                    await asyncio.sleep(RETRY_S)
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
                behind = True  # the log may have been deleted
                yield None
                continue
            live_event = _decode(message)
            if live_event is None or live_event.seq > seen + 1:
                behind = True
            elif (last := live_event.last_seq) <= seen:
                behind = live_event.terminal is not None  # the reader started beyond the end
            else:
                yield live_event.after(seen)
                seen = last
                if live_event.terminal:
                    return


def _decode(message: object) -> TokenEvent | None:
    """Decode a live message; None if messages were missed or this one is foreign: then the log must be read."""
    try:
        return decode_event(message) if isinstance(message, bytes) else None
    except UNREADABLE:
        return None


async def _read(log: TokenLog, job_id: str, seen: int, *, waited: bool) -> LogPage:
    """Read the next page. Raises Unavailable, and NotFound for a request that is unknown from the start.

    A request that is deleted while it is followed, and an answer with a gap, end with LOST.
    """
    try:
        page = await log.read(job_id, seen)
        if page.complete and not page.events:
            return await _end(log, job_id, seen, waited=waited)
    except NotFound:
        if not waited:
            raise
        return _lost(seen)
    for i, event in enumerate(page.events):
        if event.seq != seen + 1 and (event.terminal is None or event.terminal.error is None):
            return LogPage((*page.events[:i], *_lost(seen).events), complete=True)
        seen = event.last_seq
    return page


async def _end(log: TokenLog, job_id: str, seen: int, *, waited: bool) -> LogPage:
    """Read the terminal event for a reader that started beyond it. Raises NotFound, Unavailable."""
    record = await log.record(job_id)
    if record is None or (nothing_after(record, seen) and not waited):
        return LogPage((), complete=True)
    page = await log.read(job_id, record.completion_tokens - 1)
    return page if page.events else _lost(seen)


def _lost(seen: int) -> LogPage:
    """Return a terminal event with LOST."""
    end = Terminal(RequestState.FAILED, Usage(0, seen + 1), ErrorInfo.from_error(LOST))
    return LogPage((TokenEvent(seen + 1, (), end),), complete=True)
