"""Completion listener: waits for the ends of many requests on one channel, without polling or reading tokens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from shared.redis import keys
from shared.runtime.retry import run_forever
from shared.token_log.interface import Live, TokenLog

CHECK_INTERVAL_S = 3.0  # between checks for ends whose message was lost


class CompletionListener:
    """Waits for requests of one process.

    Args:
        token_log: has the state of each request.
        live: delivers the messages of ended requests.

    Attributes:
        channel: the ends must be published on it.
    """

    def __init__(self, token_log: TokenLog, live: Live) -> None:
        self._token_log = token_log
        self._live = live
        self._awaited: dict[str, set[asyncio.Future[None]]] = {}
        self.channel = keys.notify_channel(f"tasks-{secrets.token_hex(8)}")

    @contextmanager
    def waiting_for(self, job_id: str) -> Iterator[asyncio.Future[None]]:
        """Yield a future that is done once the request has ended or expired."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(job_id, set())
        waiting.add(ended)
        try:
            yield ended
        finally:
            waiting.remove(ended)
            if not waiting:
                del self._awaited[job_id]

    async def run(self) -> None:
        """Listen until cancelled."""
        await run_forever(self._receive, pause_s=CHECK_INTERVAL_S, failure_event="completions_not_received")

    async def _receive(self) -> None:
        async with self._live.subscribe(self.channel) as messages:
            while True:
                await self._handle(await messages.get(CHECK_INTERVAL_S))

    async def _handle(self, message: object) -> None:
        if isinstance(message, bytes):
            self._resolve(message.decode(errors="replace"))
        else:  # no message for a while, or some were lost
            await self.check(list(self._awaited))

    async def check(self, job_ids: list[str]) -> None:
        """Resolve the futures of requests that have ended. Raises Unavailable."""
        for job_id in job_ids:
            record = await self._token_log.record(job_id)
            if record is None or record.state.terminal:
                self._resolve(job_id)

    def _resolve(self, job_id: str) -> None:
        for ended in self._awaited.get(job_id, ()):
            if not ended.done():
                ended.set_result(None)
