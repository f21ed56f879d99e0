"""Completion listener: waits for the ends of many requests on one channel, without polling or reading tokens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.redis import keys
from shared.runtime.retry import run_forever
from shared.token_log.interface import Live, TokenLog

CHECK_INTERVAL_S = 3.0  # between checks for ends whose message was lost


@dataclass(eq=False)
class Completion:
    """End of a request, for one caller.

    Attributes:
        ended: done once the request has ended or expired.
        admitted: set by the caller once the request has a log. Until then, an unknown request has not expired.
    """

    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    admitted: bool = False

    def resolve(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


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
        self._awaited: dict[str, set[Completion]] = {}
        self.channel = keys.notify_channel(f"tasks-{secrets.token_hex(8)}")

    @contextmanager
    def waiting_for(self, job_id: str) -> Iterator[Completion]:
        """Yield the end of a request that is about to be admitted."""
        completion = Completion()
        waiting = self._awaited.setdefault(job_id, set())
        waiting.add(completion)
        try:
            yield completion
        finally:
            waiting.remove(completion)
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
            for completion in self._awaited.get(message.decode(errors="replace"), ()):
                completion.resolve()
        else:  # no message for a while, or some were lost
            await self.check(list(self._awaited))

    async def check(self, job_ids: list[str]) -> None:
        """Resolve the ends of the admitted requests that have ended. Raises Unavailable."""
        for job_id in job_ids:
            if admitted := [each for each in self._awaited.get(job_id, ()) if each.admitted]:
                record = await self._token_log.record(job_id)
                if record is None or record.state.terminal:
                    for completion in admitted:
                        completion.resolve()
