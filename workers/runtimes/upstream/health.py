"""Watch over an upstream server: whether it answers, and a wait until it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
import structlog

from shared.errors import Unavailable
from shared.models.upstream import unreachable
from workers.runtimes.upstream.client import UpstreamClient

CHECK_INTERVAL_S = 10.0  # while the server answers; a failed request has it checked at once
RETRY_INTERVAL_S = 0.5
CHECK_TIMEOUT_S = 5.0
MAX_OUTAGE_S = 300.0  # that a request waits for; others stay in the queue

log = structlog.get_logger(__name__)


class Health:
    """State of one server. `fault` is the reason for which it cannot be used, "" while it answers.

    Args:
        client: of the server.
        on_change: called when `fault` changes.
    """

    def __init__(self, client: UpstreamClient, on_change: Callable[[], None]) -> None:
        self._client = client
        self._on_change = on_change
        self.fault = ""
        self._up = asyncio.Event()
        self._up.set()
        self._check_now = asyncio.Event()

    def suspect(self) -> None:
        """Have the server checked at once: a request has failed. Until then, `wait` waits."""
        self._up.clear()
        self._check_now.set()

    async def wait(self) -> None:
        """Wait until the server answers. Raises Unavailable after MAX_OUTAGE_S."""
        try:
            async with asyncio.timeout(MAX_OUTAGE_S):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable(self.fault or "the upstream server does not answer") from None

    async def watch(self) -> None:
        """Check the server until the task is cancelled."""
        while True:
            try:
                async with asyncio.timeout(RETRY_INTERVAL_S if self.fault else CHECK_INTERVAL_S):
                    await self._check_now.wait()
            except TimeoutError:
                pass
            self._check_now.clear()
            self._set(await self._check())

    def _set(self, fault: str) -> None:
        changed, self.fault = bool(fault) != bool(self.fault), fault
        if not fault:
            self._up.set()
        else:
            self._up.clear()
        if changed:
            url = self._client.address.url  # for the operator: the fault is public
            log.warning("upstream_down", url=url, reason=fault) if fault else log.info("upstream_up", url=url)
            self._on_change()

    async def _check(self) -> str:
        """Return the reason for which the server cannot be used, "" if it answers."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                status = await self._client.status("/models")
        except TimeoutError:
            return f"the upstream server does not answer within {CHECK_TIMEOUT_S:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            log.debug("upstream_unreachable", reason=unreachable(self._client.address, error).message)
            return "the upstream server cannot be reached"
        if status in (200, 429):
            return ""
        return f"the upstream server is not ready (HTTP {status})"
