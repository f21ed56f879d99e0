"""Webhooks in the memory of one process, under the same contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.webhooks.interface import Claim, Webhook


@dataclass
class _Entry:
    webhook: Webhook
    due: float | None
    epoch: int = 0
    claimed: bool = False
    woken: bool = False
    expires: float = float("inf")


class MemoryWebhooks:
    """Webhooks in memory.

    Args:
        keep: seconds that a webhook is kept after its end.
        clock: seconds since the epoch.
    """

    def __init__(self, *, keep: float, clock: Callable[[], float] = time.time) -> None:
        self._keep = keep
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    async def add(self, webhook: Webhook, wait: float) -> None:
        now = self._clock()
        self._entries = {key: entry for key, entry in self._entries.items() if entry.expires > now}
        self._entries.setdefault(webhook.id, _Entry(webhook, now + wait))

    async def get(self, webhook_id: str) -> Webhook | None:
        entry = self._entries.get(webhook_id)
        return entry.webhook if entry is not None and entry.expires > self._clock() else None

    async def wake(self, webhook_id: str) -> None:
        entry = self._entries.get(webhook_id)
        if entry is None or entry.due is None:
            return
        if entry.claimed:
            entry.woken = True
        else:
            entry.due = self._clock()

    async def claim(self, most: int, lease: float) -> Sequence[Claim]:
        now = self._clock()
        due = [entry for entry in self._entries.values() if entry.due is not None and entry.due <= now]
        due.sort(key=lambda entry: entry.due or 0.0)
        for entry in due[:most]:
            entry.epoch += 1
            entry.claimed, entry.due = True, now + lease
        return [Claim(entry.webhook, entry.epoch) for entry in due[:most]]

    async def update(self, claim: Claim, webhook: Webhook, wait: float | None) -> bool:
        entry = self._entries.get(webhook.id)
        if entry is None or entry.epoch != claim.epoch:
            return False
        now = self._clock()
        entry.webhook = webhook
        entry.due = None if wait is None else now + (0.0 if entry.woken else wait)
        entry.claimed = entry.woken = False
        if wait is None:
            entry.expires = now + self._keep
        return True

    async def drop(self, claim: Claim) -> None:
        entry = self._entries.get(claim.webhook.id)
        if entry is not None and entry.epoch == claim.epoch:
            del self._entries[claim.webhook.id]
