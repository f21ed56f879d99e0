"""OpenAI's file object, and what may be asked of a file.

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

UPLOADED = ("batch", "user_data")  # purposes of files that come from clients
PRODUCED = "batch_output"
LEAST_LIFE, MOST_LIFE = 3600, 2_592_000  # seconds of expires_after, OpenAI's bounds
FORM = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


class ExpiresAfter(Body):
    """When a file ends."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_LIFE, le=MOST_LIFE)


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
    def of(cls, record: FileRecord) -> File:
        return cls(
            id=record.id,
            bytes=record.size,
            created_at=int(record.created_at),
            expires_at=int(record.expires_at),
            filename=record.filename,
            purpose=record.purpose,
        )


class FileList(msgspec.Struct):
    """One page; `after` the last id gives the next."""

    data: list[File]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


class FileDeleted(msgspec.Struct):
    id: str
    deleted: bool = True
    object: Literal["file"] = "file"


def purpose_of(fields: Mapping[str, str]) -> str:
    """What an upload is for. Raises InvalidRequest, also for fields that nobody knows."""
    if unknown := sorted(set(fields) - set(FORM)):
        raise InvalidRequest("there is no such field", param=unknown[0][:64])
    purpose = fields.get("purpose", "")
    if purpose not in UPLOADED:
        raise InvalidRequest(f"purpose must be one of {', '.join(UPLOADED)}", param="purpose")
    return purpose


def life_of(fields: Mapping[str, str], default: float) -> float:
    """Seconds that an upload is kept. Raises InvalidRequest."""
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return default
    if anchor != "created_at":
        raise InvalidRequest("anchor must be created_at", param="expires_after[anchor]")
    digits = seconds or ""
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and LEAST_LIFE <= int(digits) <= MOST_LIFE):
        raise InvalidRequest(f"seconds must be {LEAST_LIFE} to {MOST_LIFE}", param="expires_after[seconds]")
    return float(digits)
