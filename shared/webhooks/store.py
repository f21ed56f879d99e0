"""Webhooks on Redis: a sorted set of ids by due time, and a hash for each; every change is one Lua call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.foreign import UNREADABLE
from shared.redis.script import LEASE_DEADLINE, LEASE_EPOCH, Script
from shared.webhooks.interface import Claim, Webhook

_decode = msgspec.json.Decoder(Webhook).decode


class RedisWebhooks:
    """Webhooks on Redis.

    Args:
        keep: seconds that a webhook is kept after its end.
    """

    def __init__(self, server: RedisServer, *, keep: float) -> None:
        self._server = server
        self._script = Script(server, "webhooks", LEASE_EPOCH, LEASE_DEADLINE, Path(__file__).with_suffix(".lua"))
        self._keep = int(keep * 1000)

    async def add(self, webhook: Webhook, wait: float) -> None:
        await self._run("add", webhook.id, msgspec.json.encode(webhook), int(wait * 1000))

    async def get(self, webhook_id: str) -> Webhook | None:
        found = await self._run("get", webhook_id)
        return None if found is None else await self._known(webhook_id.encode(), found)

    async def wake(self, webhook_id: str) -> None:
        await self._run("wake", webhook_id)

    async def claim(self, most: int, lease: float) -> Sequence[Claim]:
        async with self._server.reaching("the webhooks"):
            found = await self._script("claim", [keys.WEBHOOKS_DUE], keys.WEBHOOK_PREFIX, most, int(lease * 1000))
        known = [(await self._known(webhook_id, data), epoch) for webhook_id, data, epoch in found]
        return [Claim(webhook, epoch) for webhook, epoch in known if webhook is not None]

    async def update(self, claim: Claim, webhook: Webhook, wait: float | None) -> bool:
        due = "" if wait is None else int(wait * 1000)
        written = await self._run("update", webhook.id, claim.epoch, msgspec.json.encode(webhook), due, self._keep)
        return bool(written)

    async def drop(self, claim: Claim) -> None:
        await self._run("drop", claim.webhook.id, claim.epoch)

    async def _run(self, command: str, webhook_id: str, *args: Any) -> Any:
        async with self._server.reaching("the webhooks"):
            return await self._script(
                command, [keys.WEBHOOKS_DUE, keys.WEBHOOK_PREFIX + webhook_id], webhook_id, *args
            )

    async def _known(self, webhook_id: bytes, data: bytes) -> Webhook | None:
        """Decode a webhook; None for foreign data, which is set aside."""
        if (webhook := _webhook(webhook_id, data)) is None:
            async with self._server.reaching("the webhooks"):
                await self._script("refuse", [keys.WEBHOOKS_DUE], keys.WEBHOOK_PREFIX, webhook_id)
        return webhook


def _webhook(webhook_id: bytes, data: bytes) -> Webhook | None:
    """Decode a webhook; None for foreign data."""
    try:
        webhook = _decode(data)
    except UNREADABLE:
        return None
    return webhook if webhook.id.encode(errors="replace") == webhook_id else None
