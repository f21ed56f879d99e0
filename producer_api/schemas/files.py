"""OpenAI's file object, and the fields of an upload.

Reference: OpenAI API, "Files".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.files.records import FileRecord
from shared.schemas.base import Body

# purposes of files from clients; batches use those of `batch`, the others are kept for their client
UPLOADED = ("batch", "assistants", "fine-tune", "evals", "vision", "user_data")
PRODUCED = "batch_output"
MIN_LIFETIME_S, MAX_LIFETIME_S = 3600, 2_592_000  # OpenAI's bounds of expires_after
FORM = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


class ExpiresAfter(Body):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_LIFETIME_S, le=MAX_LIFETIME_S)


class File(msgspec.Struct, kw_only=True):
    """One file; times in whole seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def from_record(cls, record: FileRecord) -> File:
        return cls(
            id=record.id,
            bytes=record.size,
            created_at=int(record.created_at),
            expires_at=int(record.expires_at),
            filename=record.filename,
            purpose=record.purpose,
        )


class FileList(msgspec.Struct):
    """One page; the next one has `after` set to `last_id`."""

    data: list[File]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


class FileDeleted(msgspec.Struct):
    id: str
    deleted: bool = True
    object: Literal["file"] = "file"


def unknown_fields(fields: Mapping[str, str], *, strict_fields: bool) -> list[str]:
    """Return the names of an upload's unknown fields. Raise InvalidRequest for the first one if `strict_fields`."""
    unknown = sorted(set(fields) - set(FORM))
    if unknown and strict_fields:
        raise InvalidRequest(f"the form must only have the fields file, {', '.join(FORM)}", param=unknown[0][:64])
    return unknown


def purpose_of(fields: Mapping[str, str]) -> str:
    """Return the purpose of an upload. Raises InvalidRequest."""
    purpose = fields.get("purpose", "")
    if purpose not in UPLOADED:
        raise InvalidRequest(f"purpose must be one of {', '.join(UPLOADED)}", param="purpose")
    return purpose


def lifetime_s(fields: Mapping[str, str], default: float) -> float:
    """Return for how many seconds an upload is kept. Raises InvalidRequest."""
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return default
    if anchor != "created_at":
        raise InvalidRequest("expires_after[anchor] must be created_at", param="expires_after[anchor]")
    digits = seconds or ""
    if not (
        digits.isascii()
        and digits.isdigit()
        and len(digits) < 10
        and MIN_LIFETIME_S <= int(digits) <= MAX_LIFETIME_S
    ):
        raise InvalidRequest(
            f"expires_after[seconds] must be between {MIN_LIFETIME_S} and {MAX_LIFETIME_S}",
            param="expires_after[seconds]",
        )
    return float(digits)
