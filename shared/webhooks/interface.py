"""The contract of the list of webhooks: each is told once its work ended, again and again until it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec


class WebhookState(StrEnum):
    """Where a webhook is in its life; the last three are its ends."""

    WAITING = "waiting"  # the work goes on
    PENDING = "pending"  # the work ended: to be delivered
    DELIVERED = "delivered"
    FAILED = "failed"  # given up
    SKIPPED = "skipped"  # not one of the events asked for

    @property
    def ended(self) -> bool:
        return self in (WebhookState.DELIVERED, WebhookState.FAILED, WebhookState.SKIPPED)


class Hook(msgspec.Struct, frozen=True):
    """What a client asked for: no `events` means all."""

    url: str
    events: tuple[str, ...] = ()


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook, of the request or batch that has its id. Times in seconds since the epoch, by its clock.

    `body` is what is sent, the same in all attempts; there once the work has ended, at `ended_at`.
    """

    id: str
    hook: Hook
    created_at: float
    state: WebhookState = WebhookState.WAITING
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    ended_at: float | None = None
    next_attempt_at: float | None = None
    body: str = ""


class Claim(msgspec.Struct, frozen=True):
    """A webhook in one process's hands, until the lease is over or somebody else claims it."""

    webhook: Webhook
    epoch: int


class Webhooks(Protocol):
    """Durable, in the order in which they are due. Every call raises Unavailable."""

    async def add(self, webhook: Webhook, wait: float) -> None:
        """Once by id; it is first due in `wait` seconds."""

    async def get(self, webhook_id: str) -> Webhook | None: ...

    async def wake(self, webhook_id: str) -> None:
        """Its work has ended: it is due now, unless somebody has it."""

    async def claim(self, most: int, lease: float) -> Sequence[Claim]:
        """Those that are due, for `lease` seconds: after that they are due again."""

    async def update(self, claim: Claim, webhook: Webhook, wait: float | None) -> bool:
        """Write what became of it; it is due in `wait` seconds, or, with None, done. False: the claim is lost."""

    async def drop(self, claim: Claim) -> None:
        """There is no such work."""
