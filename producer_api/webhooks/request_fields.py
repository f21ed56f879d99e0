"""A webhook as it is asked for: whom to tell, and of which ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from producer_api.webhooks.address import MOST_URL
from shared.schemas.base import Body
from shared.webhooks.interface import Hook

URL, EVENTS = "https, at a public address", "only these; default: all"


class WebhookTarget(Body):
    """Whom to tell of an end."""

    url: str = Field(max_length=MOST_URL, description=URL)
    events: Sequence[str] | None = Field(None, min_length=1, max_length=3, description=EVENTS)

    def to_hook(self) -> Hook:
        return Hook(self.url, tuple(self.events or ()))


class WebhookFields(WebhookTarget):
    """Whom to tell of a job's end."""

    events: Sequence[Literal["job.completed", "job.failed", "job.cancelled"]] | None = Field(
        None, min_length=1, max_length=4, description=EVENTS
    )


class BatchWebhookFields(WebhookTarget):
    """Whom to tell of a batch's end."""

    events: Sequence[Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]] | None = Field(
        None, min_length=1, max_length=4, description=EVENTS
    )
