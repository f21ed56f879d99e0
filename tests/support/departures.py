"""Orders to leave for a worker process, and what it handed over."""

from __future__ import annotations

import json
from pathlib import Path

from shared.models.drain_orders import DrainOrders
from shared.models.worker_registry import worker_id_prefix
from shared.redis import keys
from shared.redis.client import RedisServer
from tests.support.node import Node
from tests.support.waiting import LIMIT_S


async def order_to_leave(worker: Node, redis_url: str) -> None:
    """Place the order of `headrace worker drain --now` for all workers of a process."""
    server = RedisServer.connect(redis_url, timeout=LIMIT_S)
    try:
        names = [name.decode() for name in await server.client.smembers(keys.WORKERS)]
        own = [name for name in names if name.startswith(worker_id_prefix(worker.pid))]
        assert own, f"{worker.name} is not among {names}"
        await DrainOrders(server).place(own, "now")
    finally:
        await server.client.aclose(close_connection_pool=True)


def handed_over(log: Path) -> int:
    """Return the number of answers that a worker handed over, over all its runs, from its log."""
    lines = log.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return sum(each["handed_back"] for each in found if each["event"] == "grace_over")
