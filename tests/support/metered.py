"""API with limits, whose usage is settled in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import httpx

from producer_api.metering.usage_settler import UsageSettler
from producer_api.server import Server, listen
from producer_api.services import Context
from shared.accounts.usage import Filters, UsageRecords
from shared.backend import Backend
from shared.redis import keys
from shared.settings import Settings, load
from tests.support.waiting import LIMIT_S

LIMITS = {"default_plan": "free", "rate_limit_strategy": "fixed-window"}


@dataclass
class Metered:
    """One API, with its usage settler."""

    url: str
    http: httpx.AsyncClient
    context: Context
    settler: UsageSettler

    async def settled(self) -> None:
        """Wait until the usage of every finished job is settled and written."""
        async with asyncio.timeout(LIMIT_S):
            while await self.context.backend.redis.exists(*keys.LEDGER):
                await asyncio.sleep(0.01)

    async def sweep(self) -> None:
        """Run the settler's sweep over all open entries, as if a long time had passed."""
        _, due, _ = keys.LEDGER
        for job_id in await self.context.backend.redis.zrange(due, 0, -1):
            await self.context.backend.redis.zadd(due, {job_id: 0})
        await self.settler.sweep()

    def limited(self) -> dict[str, float]:
        """Return the number of refusals so far by reason."""
        [found] = [each for each in self.context.metrics.registry.collect() if each.name == "headrace_api_limited"]
        return {each.labels["reason"]: each.value for each in found.samples if each.name.endswith("_total")}

    async def usage(self, *by: str, **filters: Any) -> list[dict[str, Any]]:
        return await UsageRecords(self.context.database).sums(by, Filters(**filters))


def changed(settings: Settings, **changes: Any) -> Settings:
    """Return validated settings with changes."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return load({**given, "redis_url": settings.redis_url.get_secret_value(), **changes}).settings


def planned(settings: Settings, plan: dict[str, Any], **changes: Any) -> Settings:
    """Return settings under which every tenant has a plan."""
    return changed(settings, plans={"free": plan}, **{**LIMITS, **changes})


@asynccontextmanager
@patch("producer_api.metering.usage_settler.FLUSH_DELAY_S", 0.02)
async def metered(settings: Settings, backend: Backend, *, settling: bool = True) -> AsyncIterator[Metered]:
    """Run a metered API until the body ends.

    Args:
        settling: run the settler as a task; otherwise it runs only when a test calls it.
    """
    listener = listen(settings)
    server = Server(settings, backend)
    context = server.context
    settler = context.settler()
    assert settler is not None
    tasks = [asyncio.create_task(server.serve(sockets=[listener]))]
    if settling:
        tasks.append(asyncio.create_task(settler.run()))
    url = "http://{}:{}".format(*listener.getsockname())
    try:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            yield Metered(url, http, context, settler)
    finally:
        if settling:
            tasks[1].cancel()
            await asyncio.gather(tasks[1], return_exceptions=True)
        server.should_exit = True
        await tasks[0]
