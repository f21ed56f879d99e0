"""Retry loop of the background tasks that depend on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from shared.errors import Unavailable

log = structlog.get_logger(__name__)


async def run_forever(work: Callable[[], Awaitable[None]], *, pause_s: float, failure_event: str) -> NoReturn:
    """Run `work` again and again, `pause_s` seconds after it returned or raised Unavailable, until cancelled.

    Unavailable is logged as `failure_event`. Any other error is raised.
    """
    while True:
        try:
            await work()
        except Unavailable as error:
            log.warning(failure_event, error=error.message)
        await asyncio.sleep(pause_s)
