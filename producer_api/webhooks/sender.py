"""Delivers webhooks: a task in every API process, so that it works wherever there is an API, and needs no more.

There is no leader: each process claims what is due under a lease, with an epoch. What a killed process held is due
again when the lease is over, and goes out with the same webhook-id.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from producer_api.admission.gateway import WEBHOOKS
from producer_api.webhooks.address import AddressRules
from producer_api.webhooks.post import Outcome, Poster
from producer_api.webhooks.signing import Signer
from shared.backend import Backend
from shared.batches.store import ENDED, Batches, BatchRecord
from shared.errors import NotFound, Unavailable
from shared.runtime.retry import run_forever
from shared.settings import Settings
from shared.token_log.interface import RequestRecord
from shared.token_log.subscription import Subscription
from shared.webhooks.interface import Claim, Webhook, WebhookState

ROUND = 1.0  # seconds between looks for what is due
AT_ONCE = 32  # deliveries of one process
MARGIN = 5.0  # seconds of a lease beyond an attempt's limit
UNKNOWN = 30.0  # seconds after which a webhook whose request is not known was never promised
LOOK_LEAST, LOOK_MOST = 1.0, 60.0  # seconds between looks at a request that goes on; it is heard of sooner
BACKOFF, BACKOFF_MOST = 5.0, 3600.0  # seconds before the second attempt, doubling
GONE = 410
BATCH_PREFIX = "batch_"  # of batches' ids

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class End:
    """What is told of the end of some work, at `at` in seconds since the epoch."""

    event: str
    at: float
    data: dict[str, Any]


class WebhookSender:
    """One process's part in the deliveries."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._webhooks = backend.webhooks
        self._token_log = backend.token_log
        self._batches = Batches.of(settings, backend.server) if backend.server is not None else None
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
            await run_forever(self._claim_due, pause_s=ROUND, failure_event="webhooks_failed")
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._poster.close()

    async def _claim_due(self) -> None:
        async with self._live.subscribe(WEBHOOKS) as ended:
            while True:
                await self._round(ended)

    async def _round(self, ended: Subscription) -> None:
        room = AT_ONCE - len(self._tasks)
        for claim in await self._webhooks.claim(room, self._lease) if room else ():
            task = asyncio.create_task(self._attend(claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        message = await ended.get(ROUND)
        while isinstance(message, bytes):
            await self._webhooks.wake(message.decode(errors="replace"))
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
            try:
                end = await self._end_of(webhook.id)
            except NotFound:
                if now - webhook.created_at > UNKNOWN:
                    await self._webhooks.drop(claim)
                else:
                    await self._webhooks.update(claim, webhook, LOOK_LEAST)
                return
            if end is None:
                wait = min(max((now - webhook.created_at) / 8, LOOK_LEAST), LOOK_MOST)
                await self._webhooks.update(claim, webhook, wait)
                return
            webhook = _ended(webhook, end)
            done = webhook.state.ended
            if not await self._webhooks.update(claim, webhook, None if done else self._lease) or done:
                return
        await self._deliver(claim, webhook, now)

    async def _end_of(self, work_id: str) -> End | None:
        """None while it goes on. Raises NotFound."""
        if self._batches is not None and work_id.startswith(BATCH_PREFIX):
            return _batch_end(await self._batches.get(work_id))
        record = await self._token_log.record(work_id)
        if record is None:
            raise NotFound(f"there is no job {work_id}")
        return _job_end(record)

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


def _ended(webhook: Webhook, end: End) -> Webhook:
    if webhook.hook.events and end.event not in webhook.hook.events:
        return msgspec.structs.replace(webhook, state=WebhookState.SKIPPED, ended_at=end.at)
    timestamp = datetime.fromtimestamp(end.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = msgspec.json.encode({"type": end.event, "timestamp": timestamp, "data": end.data}).decode()
    return msgspec.structs.replace(webhook, state=WebhookState.PENDING, ended_at=end.at, body=body)


def _job_end(record: RequestRecord) -> End | None:
    if not record.state.terminal:
        return None
    data = {
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
    }
    return End(f"job.{record.state.value}", record.finished_at or record.created_at, data)


def _batch_end(record: BatchRecord) -> End | None:
    if record.status not in ENDED:
        return None
    batch, at = record.batch, record.times[record.status]
    data = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "status": record.status,
        "created_at": int(batch.created_at),
        f"{record.status}_at": at,
        "request_counts": {"total": record.total, "completed": record.completed, "failed": record.failed},
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "links": {"self": f"/v1/batches/{batch.id}"},
    }
    return End(f"batch.{record.status}", float(at), data)
