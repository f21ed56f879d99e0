"""The webhooks of jobs and batches alike, at the API's edge: checked where they are asked for, and shown."""

from __future__ import annotations

import msgspec

from producer_api.admission.deadline import patience
from producer_api.services import Context
from producer_api.webhooks.address import AddressRules
from producer_api.webhooks.request_fields import WebhookTarget
from shared.errors import InvalidRequest
from shared.schemas.native.jobs import WebhookStatus
from shared.settings import Settings
from shared.webhooks.interface import Hook


def hook_of(settings: Settings, asked: WebhookTarget | None) -> Hook | None:
    """Whom a body wants told. Raises InvalidRequest, ForbiddenAddress."""
    if asked is None:
        return None
    if not settings.webhook_secrets.get_secret_value():
        raise InvalidRequest("this server has no webhook_secrets, and so no webhooks", param="webhook")
    AddressRules(settings.webhook_allow_http, settings.webhook_allow_private).parse(asked.url)
    return asked.to_hook()


async def webhook_status(context: Context, work_id: str) -> WebhookStatus | msgspec.UnsetType:
    """How the telling of a job's or a batch's end goes, where somebody is to be told. Raises Unavailable."""
    if not context.settings.webhook_secrets.get_secret_value():
        return msgspec.UNSET
    async with patience():
        webhook = await context.backend.webhooks.get(work_id)
    return msgspec.UNSET if webhook is None else WebhookStatus.from_webhook(webhook)
