"""Request and response bodies of OpenAI's batches.

Reference: OpenAI API, "Batch".
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from producer_api.schemas.files import ExpiresAfter
from producer_api.webhooks.request_fields import BatchWebhookFields
from shared.batches.store import BatchRecord
from shared.schemas.base import Body
from shared.schemas.common_fields import Metadata
from shared.schemas.native.jobs import WebhookStatus
from shared.schemas.openapi_bounds import Short

WINDOW = re.compile(r"([1-9][0-9]{0,4})([smh])")
UNITS_S = {"s": 1, "m": 60, "h": 3600}
MAX_WINDOW_S = 86_400


class BatchRequest(Body):
    """The body of POST /v1/batches."""

    input_file_id: Short = Field(description="a file with purpose batch: one request per line")
    endpoint: Short = Field(description="the path of all requests, such as /v1/chat/completions")
    completion_window: str = Field(
        description="24h; an extension of OpenAI's API are shorter times such as 90s, 30m, 2h"
    )
    metadata: Metadata = Field(None, description="up to 16 texts by name")
    output_expires_after: ExpiresAfter | None = Field(None, description="when its output files expire")
    webhook: BatchWebhookFields | None = Field(
        None, description="notified, signed, when the batch ends; an extension of OpenAI's API"
    )

    @field_validator("completion_window")
    @classmethod
    def _in_bounds(cls, value: str) -> str:
        if not WINDOW.fullmatch(value) or window_seconds(value) > MAX_WINDOW_S:
            raise PydanticCustomError("window", "must be 24h, or a shorter time such as 90s, 30m, 2h")
        return value


def window_seconds(window: str) -> int:
    """Return a validated completion window in seconds."""
    return int(window[:-1]) * UNITS_S[window[-1]]


class BatchError(msgspec.Struct):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(msgspec.Struct):
    data: list[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct):
    total: int
    completed: int
    failed: int


class BatchObject(msgspec.Struct, kw_only=True):
    """A batch; times in whole seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    webhook: WebhookStatus | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_record(
        cls, record: BatchRecord, webhook: WebhookStatus | msgspec.UnsetType = msgspec.UNSET
    ) -> BatchObject:
        batch = record.batch
        times: dict[str, Any] = {f"{name}_at": at for name, at in record.times.items()}
        errors = [BatchError(each.code, each.message, each.param, each.line) for each in record.errors]
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            errors=BatchErrors(errors) if errors else None,
            input_file_id=batch.input_file_id,
            completion_window=batch.completion_window,
            status=record.status,  # type: ignore[arg-type]
            output_file_id=record.output_file_id,
            error_file_id=record.error_file_id,
            created_at=int(batch.created_at),
            expires_at=int(batch.expires_at),
            request_counts=RequestCounts(record.total, record.completed, record.failed),
            metadata=batch.metadata,
            webhook=webhook,
            **times,
        )


class BatchList(msgspec.Struct):
    """One page, newest first; the next one has `after` set to `last_id`."""

    data: list[BatchObject]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"
