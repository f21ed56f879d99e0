"""What POST /v1/jobs takes beside the request itself."""

from __future__ import annotations

from pydantic import Field

from producer_api.webhooks.request_fields import WebhookFields
from shared.schemas.native.jobs import JobRequest


class JobSubmission(JobRequest):
    """The body of POST /v1/jobs."""

    webhook: WebhookFields | None = Field(None, description="told of the job's end, signed")
