"""The ends of many requests, heard on one channel of this process: nobody polls for them or reads their tokens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from shared.redis import keys
from shared.runtime.retry import run_forever
from shared.token_log.interface import Live, TokenLog

SLOW = 3.0  # seconds between looks for ends that were not heard


class Ends:
    """Awaited requests.

    Args:
        token_log: has the truth.
        live: brings the news.
    """

    def __init__(self, token_log: TokenLog, live: Live) -> None:
        self._token_log = token_log
        self._live = live
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self.channel = keys.notify_channel(f"tasks-{secrets.token_hex(8)}")

    @contextmanager
    def awaiting(self, job_id: str) -> Iterator[asyncio.Future[None]]:
        """Done once the request has ended, or is not known any more. One waits for a request at a time."""
        ended = self._awaited[job_id] = asyncio.get_running_loop().create_future()
        try:
            yield ended
        finally:
            if self._awaited.get(job_id) is ended:
                del self._awaited[job_id]

    async def listen(self) -> None:
        """Until it is cancelled."""
        await run_forever(self._receive, pause_s=SLOW, failure_event="ends_not_heard")

    async def _receive(self) -> None:
        async with self._live.subscribe(self.channel) as messages:
            while True:
                await self._take(await messages.get(SLOW))

    async def _take(self, message: object) -> None:
        if isinstance(message, bytes):
            self._resolve(message.decode(errors="replace"))
        else:  # silence, or some were missed
            await self.look(list(self._awaited))

    async def look(self, job_ids: list[str]) -> None:
        """Find those that have ended already. Raises Unavailable."""
        for job_id in job_ids:
            record = await self._token_log.record(job_id)
            if record is None or record.state.terminal:
                self._resolve(job_id)

    def _resolve(self, job_id: str) -> None:
        ended = self._awaited.get(job_id)
        if ended is not None and not ended.done():
            ended.set_result(None)
