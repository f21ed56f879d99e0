"""Delivers webhooks: a task in every API process, so that it works wherever there is an API, and needs no more.

There is no leader: each process claims what is due under a lease, with an epoch. What a killed process held is due
again when the lease is over, and goes out with the same webhook-id.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from producer_api.gateway.admit import WEBHOOKS
from shared.backend import Backend
from shared.config import Settings
from shared.delivery.base import RequestRecord
from shared.delivery.subscription import Subscription
from shared.errors import Unavailable
from shared.webhooks.address import AddressRules
from shared.webhooks.base import Claim, Webhook, WebhookState
from shared.webhooks.post import Outcome, Poster
from shared.webhooks.signing import Signer

ROUND = 1.0  # seconds between looks for what is due
AT_ONCE = 32  # deliveries of one process
MARGIN = 5.0  # seconds of a lease beyond an attempt's limit
UNKNOWN = 30.0  # seconds after which a webhook whose request is not known was never promised
LOOK_LEAST, LOOK_MOST = 1.0, 60.0  # seconds between looks at a request that goes on; it is heard of sooner
BACKOFF, BACKOFF_MOST = 5.0, 3600.0  # seconds before the second attempt, doubling
GONE = 410

log = structlog.get_logger(__name__)


class WebhookSender:
    """One process's part in the deliveries."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._webhooks = backend.webhooks
        self._token_log = backend.token_log
        self._live = backend.live
        self._signer = Signer(settings.webhook_secrets.get_secret_value())
        self._poster = Poster(
            AddressRules(http=settings.webhook_allow_http, private=settings.webhook_allow_private),
            timeout=settings.webhook_timeout,
        )
        self._lease = settings.webhook_timeout + MARGIN
        self._retry_for = settings.webhook_retry_for
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled; what it holds then is another's after the lease."""
        if not self._signer:
            return
        try:
            while True:
                try:
                    async with self._live.subscribe(WEBHOOKS) as ended:
                        while True:
                            await self._round(ended)
                except Unavailable as error:
                    log.warning("webhooks_failed", error=error.message)
                await asyncio.sleep(ROUND)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._poster.close()

    async def _round(self, ended: Subscription) -> None:
        room = AT_ONCE - len(self._tasks)
        for claim in await self._webhooks.claim(room, self._lease) if room else ():
            task = asyncio.create_task(self._attend(claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        message = await ended.get(ROUND)
        while isinstance(message, bytes):
            await self._webhooks.wake(message.decode())
            message = None if len(self._tasks) >= AT_ONCE else await ended.get(0)

    async def _attend(self, claim: Claim) -> None:
        try:
            await self._advance(claim)
        except Unavailable as error:
            log.warning("webhook_left", webhook=claim.webhook.id, error=error.message)

    async def _advance(self, claim: Claim) -> None:
        """Tell it, if its work has ended."""
        webhook = claim.webhook
        now = await self._token_log.now()
        if webhook.state is WebhookState.WAITING:
            record = await self._token_log.record(webhook.id)
            if record is None:
                if now - webhook.created_at > UNKNOWN:
                    await self._webhooks.drop(claim)
                else:
                    await self._webhooks.update(claim, webhook, LOOK_LEAST)
                return
            if not record.state.terminal:
                wait = min(max((now - webhook.created_at) / 8, LOOK_LEAST), LOOK_MOST)
                await self._webhooks.update(claim, webhook, wait)
                return
            webhook = _ended(webhook, record)
            done = webhook.state.ended
            if not await self._webhooks.update(claim, webhook, None if done else self._lease) or done:
                return
        await self._deliver(claim, webhook, now)

    async def _deliver(self, claim: Claim, webhook: Webhook, now: float) -> None:
        body = webhook.body.encode()
        headers = self._signer.headers(message_id(webhook.id), int(now), body)
        outcome = await self._poster.post(webhook.hook.url, headers, body)
        webhook, wait = after(webhook, outcome, await self._token_log.now(), self._retry_for)
        await self._webhooks.update(claim, webhook, wait)
        log.info(
            "webhook",
            webhook=webhook.id,
            state=webhook.state.value,
            status=outcome.status,
            error=outcome.error,
            attempts=webhook.attempts,
        )


def message_id(webhook_id: str) -> str:
    """The webhook-id, the same in all attempts."""
    return f"msg_{webhook_id}"


def after(webhook: Webhook, outcome: Outcome, now: float, retry_for: float) -> tuple[Webhook, float | None]:
    """What an attempt's outcome makes of a webhook, and the seconds until the next one, if there is one."""
    attempts = webhook.attempts + 1
    ended_at = now if webhook.ended_at is None else webhook.ended_at
    wait = min(BACKOFF * 2 ** min(attempts - 1, 20), BACKOFF_MOST) * random.uniform(0.5, 1)  # noqa: S311  spreads them
    wait = max(wait, outcome.retry_after)
    state = WebhookState.PENDING
    if outcome.delivered:
        state = WebhookState.DELIVERED
    elif outcome.status == GONE or outcome.hopeless or now + wait > ended_at + retry_for:
        state = WebhookState.FAILED
    told = msgspec.structs.replace(
        webhook,
        state=state,
        attempts=attempts,
        last_status=outcome.status,
        last_error=outcome.error,
        next_attempt_at=None if state.ended else now + wait,
        body="" if state.ended else webhook.body,
    )
    return told, None if state.ended else wait


def _ended(webhook: Webhook, record: RequestRecord) -> Webhook:
    event = f"job.{record.state.value}"
    at = record.finished_at or record.created_at
    if webhook.hook.events and event not in webhook.hook.events:
        return msgspec.structs.replace(webhook, state=WebhookState.SKIPPED, ended_at=at)
    body: dict[str, Any] = {
        "type": event,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "id": record.id,
            "object": "job",
            "model": record.model,
            "state": record.state.value,
            "created_at": record.created_at,
            "finished_at": record.finished_at,
            "usage": {
                "prompt_tokens": record.prompt_tokens,
                "completion_tokens": record.completion_tokens,
                "total_tokens": record.prompt_tokens + record.completion_tokens,
            },
            "links": {"self": f"/v1/jobs/{record.id}"},
        },
    }
    encoded = msgspec.json.encode(body).decode()
    return msgspec.structs.replace(webhook, state=WebhookState.PENDING, ended_at=at, body=encoded)
