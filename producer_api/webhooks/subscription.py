"""Webhooks in the bodies of jobs and batches: checking a requested one, reporting the state of one."""

from __future__ import annotations

import msgspec

from producer_api.admission.deadline import redis_deadline
from producer_api.services import Context
from producer_api.webhooks.address import AddressRules
from producer_api.webhooks.request_fields import WebhookTarget
from shared.errors import InvalidRequest
from shared.schemas.native.jobs import WebhookStatus
from shared.settings import Settings
from shared.webhooks.interface import Hook


def validated_hook(settings: Settings, target: WebhookTarget | None) -> Hook | None:
    """Return the webhook that a body asks for. Raises InvalidRequest, ForbiddenAddress."""
    if target is None:
        return None
    if not settings.webhook_secrets.get_secret_value():
        raise InvalidRequest("webhooks are off: the server has no webhook_secrets", param="webhook")
    AddressRules(settings.webhook_allow_http, settings.webhook_allow_private).parse(target.url)
    return target.to_hook()


async def webhook_status(context: Context, work_id: str) -> WebhookStatus | msgspec.UnsetType:
    """Return the state of the webhook of a job or batch, if it has one. Raises Unavailable."""
    if not context.settings.webhook_secrets.get_secret_value():
        return msgspec.UNSET
    async with redis_deadline():
        webhook = await context.backend.webhooks.get(work_id)
    return msgspec.UNSET if webhook is None else WebhookStatus.from_webhook(webhook)
