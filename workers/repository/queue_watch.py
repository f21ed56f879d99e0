"""Notice of requests that wait for a model which this process does not serve."""

from __future__ import annotations

import asyncio

import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.redis import keys

POLL_S = 5.0  # between looks without a message, for requests of a worker that was lost
RETRY_S = 0.5

log = structlog.get_logger(__name__)


async def wait_for_requests(backend: Backend, model: str) -> None:
    """Return once requests wait for a model, or were lost by its worker, and no other worker serves it."""
    while True:
        try:
            async with backend.live.subscribe(keys.wake_channel(model)) as woken:
                while not await is_demanded(backend, model):
                    await woken.get(POLL_S)
                return
        except Unavailable as error:
            log.warning("queue_unavailable", model=model, error=error.message)
            await asyncio.sleep(RETRY_S)


async def is_demanded(backend: Backend, model: str) -> bool:
    """Return whether a model has requests, and no worker loads or serves it. Raises Unavailable."""
    depth = await backend.transport.depth(model)
    if not (depth.open or depth.held):  # what is paused asks for no worker
        return False
    serving = [each for each in await backend.registry.workers() if each.model == model and each.task is not None]
    return not any(worker.state in ("loading", "ready") for worker in serving)
