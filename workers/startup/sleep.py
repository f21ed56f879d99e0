"""Sleep of a worker: the requests of a sleeping model wait in its queue.

A worker whose model is put to sleep drains, and then replaces its process by a new one, because only the end of a
process returns all memory of torch and of a GPU. The new process loads nothing until the model is woken.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec
import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.models.drain_orders import DrainOrders
from shared.models.worker_registry import WorkerInfo

POLL_INTERVAL_S = 1.0  # between looks at what the model shall do
HEARTBEATS_PER_LEASE = 3

log = structlog.get_logger(__name__)


class OrderedToLeave(Exception):
    """An operator drained the worker while it slept."""


async def sleep_until_woken(backend: Backend, info: WorkerInfo, lease: float) -> bool:
    """Announce the worker as sleeping while its model shall sleep; return whether it slept.

    Without Redis, a sleeping worker sleeps on. Raises Unavailable if Redis does not answer at first; OrderedToLeave
    once the worker has left the registry.
    """
    if info.model not in await backend.registry.asleep():
        return False
    log.info("worker_sleeping", worker=info.id, model=info.model)
    asleep = True
    while asleep:
        try:
            await backend.registry.beat(msgspec.structs.replace(info, state="sleeping"))
            await asyncio.sleep(min(POLL_INTERVAL_S, lease / HEARTBEATS_PER_LEASE))
            if await _is_drained(backend, info.id):
                await backend.registry.leave(info.id)
                raise OrderedToLeave
            asleep = info.model in await backend.registry.asleep()
        except Unavailable as error:
            log.warning("heartbeat_failed", error=error.message)
            await asyncio.sleep(POLL_INTERVAL_S)
    log.info("worker_woken", worker=info.id, model=info.model)
    return True


async def _is_drained(backend: Backend, worker_id: str) -> bool:
    return backend.server is not None and await DrainOrders(backend.server).order_for([worker_id]) is not None


async def wait_until_asleep(backend: Backend, model: str) -> None:
    """Return once the model shall sleep."""
    while True:
        try:
            if model in await backend.registry.asleep():
                return
        except Unavailable as error:
            log.warning("sleep_unknown", error=error.message)
        await asyncio.sleep(POLL_INTERVAL_S)


def restart_process() -> None:
    """Replace this process by a new one with the same command, environment and process id."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  the command that started this process
