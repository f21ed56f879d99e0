"""Fields of a request body that ask for a webhook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from producer_api.webhooks.address import MAX_URL_CHARS
from shared.schemas.base import Body
from shared.webhooks.interface import Hook

URL, EVENTS = "https, with a public address", "only these events; default: all"


class WebhookTarget(Body):
    """Address to notify when the work ends."""

    url: str = Field(max_length=MAX_URL_CHARS, description=URL)
    events: Sequence[str] | None = Field(None, min_length=1, max_length=3, description=EVENTS)

    def to_hook(self) -> Hook:
        return Hook(self.url, tuple(self.events or ()))


class WebhookFields(WebhookTarget):
    """Address to notify when the job ends."""

    events: Sequence[Literal["job.completed", "job.failed", "job.cancelled"]] | None = Field(
        None, min_length=1, max_length=4, description=EVENTS
    )


class BatchWebhookFields(WebhookTarget):
    """Address to notify when the batch ends."""

    events: Sequence[Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]] | None = Field(
        None, min_length=1, max_length=4, description=EVENTS
    )
