"""Reads an answer as it grows: subscribe first, replay the log second, then drop what is there already.

It knows the log and the live messages by their contracts alone.
"""

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
    log: TokenLog, live: Live, job_id: str, after: int, *, idle: float
) -> AsyncGenerator[TokenEvent | None]:
    """TokenLog.follow, over any log's `read`.

    Once it has read the log, it waits out an outage of the store of up to OUTAGE seconds, as silence. What another
    program deleted of the log ends the answer with LOST.
    """
    async with live.subscribe(keys.live_channel(job_id)) as subscription:
        seen, behind, waited = after, True, False
        outage = Outage()
        while True:
            if behind:
                try:
                    page = await _read(log, job_id, seen, waited=waited)
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
                behind = True  # the log may have been deleted
                yield None
                continue
            live_event = _decode(message)
            if live_event is None or live_event.seq > seen + 1:
                behind = True
            elif live_event.last_seq <= seen:
                behind = live_event.terminal is not None  # it began beyond the end
            else:
                yield live_event.after(seen)
                seen = live_event.last_seq
                if live_event.terminal:
                    return


def _decode(message: object) -> TokenEvent | None:
    """None where the log is to be read instead: messages were missed, or this is not one of an answer."""
    try:
        return decode_event(message) if isinstance(message, bytes) else None
    except UNREADABLE:
        return None


async def _read(log: TokenLog, job_id: str, seen: int, *, waited: bool) -> LogPage:
    """The next page. Raises NotFound for a request that is not known from the start, Unavailable.

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
    """The last event of an answer that has ended, for a reader from beyond it. Raises NotFound, Unavailable."""
    record = await log.record(job_id)
    if record is None or (nothing_after(record, seen) and not waited):
        return LogPage((), complete=True)
    page = await log.read(job_id, record.completion_tokens - 1)
    return page if page.events else _lost(seen)


def _lost(seen: int) -> LogPage:
    """The end of an answer that is not in its log any more."""
    end = Terminal(RequestState.FAILED, Usage(0, seen + 1), ErrorInfo.from_error(LOST))
    return LogPage((TokenEvent(seen + 1, (), end),), complete=True)
