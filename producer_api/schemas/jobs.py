"""The body of POST /v1/jobs: a request and its webhook."""

from __future__ import annotations

from pydantic import Field

from producer_api.webhooks.request_fields import WebhookFields
from shared.schemas.native.jobs import JobRequest


class JobSubmission(JobRequest):
    """The body of POST /v1/jobs."""

    webhook: WebhookFields | None = Field(None, description="notified, signed, when the job ends")
