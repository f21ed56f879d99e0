"""Everything that ends a worker process on purpose: signals, orders and the notice of a cloud."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from shared.backend import Backend
from shared.settings import Settings
from workers.stopping.orders import watch_orders
from workers.stopping.spot_notices import wait_for_notice

SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


@asynccontextmanager
async def stopping_by(
    settings: Settings,
    backend: Backend,
    worker_ids: Callable[[], Sequence[str]],
    stop: Callable[[float | None], None],
) -> AsyncIterator[None]:
    """While the body runs, call `stop` with the seconds that the requests may take; None for the grace time.

    A second signal, `worker drain --now` and the notice of a cloud allow none: the running answers are handed over.
    """
    loop = asyncio.get_running_loop()
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        stop(0 if signalled else None)
        signalled = True

    async def on_notice() -> None:
        await wait_for_notice(settings)
        stop(0)

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    orders = watch_orders(backend, worker_ids, lambda order: stop(0 if order == "now" else None))
    tasks = [asyncio.create_task(orders), asyncio.create_task(on_notice())]
    for task in tasks:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log an error that ends a watch: the worker goes on without it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("departure_watch_failed", error=repr(error))
