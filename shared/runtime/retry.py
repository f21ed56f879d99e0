"""Retries of what depends on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import structlog

from shared.errors import Unavailable

Result = TypeVar("Result")

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


async def until_available(work: Callable[[], Awaitable[Result]], *, pause_s: float, failure_event: str) -> Result:
    """Return the result of `work`, which is run again after `pause_s` seconds whenever it raises Unavailable."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            log.warning(failure_event, error=error.message)
            await asyncio.sleep(pause_s)
