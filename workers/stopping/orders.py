"""Drain orders, as a worker process obeys them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.models.drain_orders import DrainOrder, DrainOrders
from shared.redis import keys

POLL_S = 5.0  # between looks without a message
RETRY_S = 0.5

log = structlog.get_logger(__name__)


async def watch_orders(
    backend: Backend, worker_ids: Callable[[], Sequence[str]], obey: Callable[[DrainOrder], None]
) -> None:
    """Obey the orders to any worker of this process, and those that become more urgent, until cancelled."""
    if backend.server is None:
        return
    orders, obeyed = DrainOrders(backend.server), None
    while True:
        try:
            async with backend.live.subscribe(keys.DRAIN_WAKE) as woken:
                while True:
                    order = await orders.order_for(worker_ids())
                    if order is not None and order != obeyed:
                        log.info("drain_ordered", order=order)
                        obeyed = order
                        obey(order)
                    await woken.get(POLL_S)
        except Unavailable as error:
            log.warning("drain_orders_unavailable", error=error.message)
            await asyncio.sleep(RETRY_S)
