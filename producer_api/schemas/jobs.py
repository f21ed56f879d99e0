"""What POST /v1/jobs takes beside the request itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.schemas.body import Body
from shared.schemas.jobs import JobRequest
from shared.webhooks.base import Hook

Event = Literal["job.completed", "job.failed", "job.cancelled"]


class WebhookFields(Body):
    """Whom to tell of a job's end."""

    url: str = Field(description="https, at a public address")
    events: list[Event] | None = Field(None, min_length=1, description="only these; default: all")

    def to_hook(self) -> Hook:
        return Hook(self.url, tuple(self.events or ()))


class JobSubmission(JobRequest):
    """The body of POST /v1/jobs."""

    webhook: WebhookFields | None = Field(None, description="told of the job's end, signed")
