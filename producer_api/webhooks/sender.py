"""Webhook sender: a task in every API process that delivers webhooks.

There is no leader: each process claims due webhooks under a lease with a lease epoch. If a process is killed, its
webhooks are due again when the lease expires, and go out with the same webhook-id.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from producer_api.admission.gateway import WEBHOOK_CHANNEL
from producer_api.webhooks.address import AddressRules
from producer_api.webhooks.post import Outcome, WebhookClient
from producer_api.webhooks.signing import Signer
from shared.backend import Backend
from shared.batches.store import ENDED, Batches, BatchRecord
from shared.errors import NotFound, Unavailable
from shared.runtime.retry import run_forever
from shared.settings import Settings
from shared.token_log.interface import RequestRecord
from shared.token_log.subscription import Subscription
from shared.webhooks.interface import Claim, Webhook, WebhookState

POLL_INTERVAL_S = 1.0  # between searches for due webhooks
MAX_DELIVERIES = 32  # at a time, in one process
LEASE_MARGIN_S = 5.0  # how much longer a lease is than an attempt
UNKNOWN_WORK_AGE_S = 30.0  # a webhook this old whose job does not exist belongs to a refused request
# between checks of unfinished work; its end is published too
MIN_CHECK_DELAY_S, MAX_CHECK_DELAY_S = 1.0, 60.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 5.0, 3600.0  # before the second attempt, then doubling
GONE = 410
BATCH_PREFIX = "batch_"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class WorkEnd:
    """Event and data of a webhook for work that ended at `at`, in seconds since the Unix epoch."""

    event: str
    at: float
    data: dict[str, Any]


class WebhookSender:
    """Webhook sender of one process."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._webhooks = backend.webhooks
        self._token_log = backend.token_log
        self._batches = Batches.from_settings(settings, backend.server) if backend.server is not None else None
        self._live = backend.live
        self._signer = Signer(settings.webhook_secrets.get_secret_value())
        self._client = WebhookClient(
            AddressRules(http=settings.webhook_allow_http, private=settings.webhook_allow_private),
            timeout=settings.webhook_timeout,
        )
        self._lease = settings.webhook_timeout + LEASE_MARGIN_S
        self._retry_for = settings.webhook_retry_for
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run until cancelled. Other processes claim its webhooks after their leases expire."""
        if not self._signer:
            return
        try:
            await run_forever(self._claim_due, pause_s=POLL_INTERVAL_S, failure_event="webhooks_failed")
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._client.close()

    async def _claim_due(self) -> None:
        async with self._live.subscribe(WEBHOOK_CHANNEL) as messages:
            while True:
                await self._round(messages)

    async def _round(self, messages: Subscription) -> None:
        room = MAX_DELIVERIES - len(self._tasks)
        for claim in await self._webhooks.claim(room, self._lease) if room else ():
            task = asyncio.create_task(self._process(claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        message = await messages.get(POLL_INTERVAL_S)
        while isinstance(message, bytes):
            await self._webhooks.wake(message.decode(errors="replace"))
            message = None if len(self._tasks) >= MAX_DELIVERIES else await messages.get(0)

    async def _process(self, claim: Claim) -> None:
        try:
            await self._deliver_if_ended(claim)
        except Unavailable as error:
            log.warning("webhook_postponed", webhook=claim.webhook.id, error=error.message)

    async def _deliver_if_ended(self, claim: Claim) -> None:
        """Deliver the webhook if its work has ended; otherwise schedule the next check."""
        webhook = claim.webhook
        now = await self._token_log.now()
        if webhook.state is WebhookState.WAITING:
            try:
                end = await self._end_of(webhook.id)
            except NotFound:
                if now - webhook.created_at > UNKNOWN_WORK_AGE_S:
                    await self._webhooks.drop(claim)
                else:
                    await self._webhooks.update(claim, webhook, MIN_CHECK_DELAY_S)
                return
            if end is None:
                wait = min(max((now - webhook.created_at) / 8, MIN_CHECK_DELAY_S), MAX_CHECK_DELAY_S)
                await self._webhooks.update(claim, webhook, wait)
                return
            webhook = _ended(webhook, end)
            done = webhook.state.ended
            if not await self._webhooks.update(claim, webhook, None if done else self._lease) or done:
                return
        await self._deliver(claim, webhook, now)

    async def _end_of(self, work_id: str) -> WorkEnd | None:
        """Return the end of a job or batch; None while it is unfinished. Raises NotFound."""
        if self._batches is not None and work_id.startswith(BATCH_PREFIX):
            return _batch_end(await self._batches.get(work_id))
        record = await self._token_log.record(work_id)
        if record is None:
            raise NotFound(f"the job {work_id} does not exist")
        return _job_end(record)

    async def _deliver(self, claim: Claim, webhook: Webhook, now: float) -> None:
        body = webhook.body.encode()
        headers = self._signer.headers(message_id(webhook.id), int(now), body)
        outcome = await self._client.post(webhook.hook.url, headers, body)
        webhook, wait = after_attempt(webhook, outcome, await self._token_log.now(), self._retry_for)
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
    """Return the webhook-id, the same for every attempt."""
    return f"msg_{webhook_id}"


def after_attempt(webhook: Webhook, outcome: Outcome, now: float, retry_for: float) -> tuple[Webhook, float | None]:
    """Return the webhook after an attempt, and the seconds until the next one if there is one."""
    attempts = webhook.attempts + 1
    ended_at = now if webhook.ended_at is None else webhook.ended_at
    wait = min(FIRST_BACKOFF_S * 2 ** min(attempts - 1, 20), MAX_BACKOFF_S) * random.uniform(0.5, 1)  # noqa: S311  jitter
    wait = max(wait, outcome.retry_after)
    state = WebhookState.PENDING
    if outcome.delivered:
        state = WebhookState.DELIVERED
    elif outcome.status == GONE or outcome.permanent or now + wait > ended_at + retry_for:
        state = WebhookState.FAILED
    updated = msgspec.structs.replace(
        webhook,
        state=state,
        attempts=attempts,
        last_status=outcome.status,
        last_error=outcome.error,
        next_attempt_at=None if state.ended else now + wait,
        body="" if state.ended else webhook.body,
    )
    return updated, None if state.ended else wait


def _ended(webhook: Webhook, end: WorkEnd) -> Webhook:
    if webhook.hook.events and end.event not in webhook.hook.events:
        return msgspec.structs.replace(webhook, state=WebhookState.SKIPPED, ended_at=end.at)
    timestamp = datetime.fromtimestamp(end.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = msgspec.json.encode({"type": end.event, "timestamp": timestamp, "data": end.data}).decode()
    return msgspec.structs.replace(webhook, state=WebhookState.PENDING, ended_at=end.at, body=body)


def _job_end(record: RequestRecord) -> WorkEnd | None:
    if not record.state.terminal:
        return None
    data = {
        "id": record.id,
        "object": "job",
        "model": record.named_model,
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
    return WorkEnd(f"job.{record.state.value}", record.finished_at or record.created_at, data)


def _batch_end(record: BatchRecord) -> WorkEnd | None:
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
    return WorkEnd(f"batch.{record.status}", float(at), data)
