"""The contract of the webhook store: each webhook is delivered once its work has ended, with retries."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec


class WebhookState(StrEnum):
    """State of a webhook; the last three are final."""

    WAITING = "waiting"  # for the work to end
    PENDING = "pending"  # the work has ended: to be delivered
    DELIVERED = "delivered"
    FAILED = "failed"  # retries exhausted
    SKIPPED = "skipped"  # not one of the subscribed events

    @property
    def ended(self) -> bool:
        return self in (WebhookState.DELIVERED, WebhookState.FAILED, WebhookState.SKIPPED)


class Hook(msgspec.Struct, frozen=True):
    """Subscription of a client; empty `events` means all."""

    url: str
    events: tuple[str, ...] = ()


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Webhook of the job or batch with the same id. Times are in seconds since the epoch, by the server's clock.

    `body` is what is sent, the same in all attempts; it exists once the work has ended, at `ended_at`.
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
    """A webhook under lease by one process; `epoch` is the lease epoch."""

    webhook: Webhook
    epoch: int


class Webhooks(Protocol):
    """Durable webhooks, ordered by when they are due. Every call raises Unavailable."""

    async def add(self, webhook: Webhook, wait: float) -> None:
        """Add a webhook, first due in `wait` seconds. Idempotent by id."""

    async def get(self, webhook_id: str) -> Webhook | None: ...

    async def wake(self, webhook_id: str) -> None:
        """Make a webhook due, since its work has ended; if it is claimed, once its holder updates it."""

    async def claim(self, most: int, lease: float) -> Sequence[Claim]:
        """Claim due webhooks for `lease` seconds; then they are due again."""

    async def update(self, claim: Claim, webhook: Webhook, wait: float | None) -> bool:
        """Update a claimed webhook: due in `wait` seconds, or with None done. False: the lease is lost."""

    async def drop(self, claim: Claim) -> None:
        """Delete a claimed webhook whose work does not exist."""
