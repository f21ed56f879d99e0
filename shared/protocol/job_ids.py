"""Ids of jobs, and the ids that are derived from them or from which they are derived."""

from __future__ import annotations

import hashlib
import re
import secrets
import time

import msgspec

PREFIX = "req_"
# an answer, a line of a batch's output, and the items of a response: all have the digits of their job
_DERIVED = re.compile(r"(?:req_|batch_req_|chatcmpl-|cmpl-|resp_|(?:msg|rs|fc|ctc)_)([0-9a-f]{32})(?:_[0-9]{1,9})?")
MAX_FOREIGN_CHARS = 1024  # of an id that is not Headrace's own


def new_job_id() -> str:
    """Return a sortable, unguessable id: 48 bits of milliseconds, then 80 random bits."""
    return f"{PREFIX}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def line_job_id(batch_id: str, number: int, attempt: int = 0) -> str:
    """Return the job id of a line of a batch, or of a Celery task as line 0; another attempt is another request."""
    text = f"{batch_id}:{number}" + (f":{attempt}" if attempt else "")
    return f"{PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def record_digest(*name: str | int) -> bytes:
    """Return the digest from which the job id and the seed of a Kafka record follow.

    Args:
        name: "event", the tenant and the `ce_id`; without a `ce_id`, "record", topic, partition and offset.
    """
    return hashlib.sha256(msgspec.json.encode(name)).digest()


def record_job_id(digest: bytes) -> str:
    return f"{PREFIX}{digest[:16].hex()}"


def possible_job_ids(given: str, tenant: str) -> list[str]:
    """Return the ids of the jobs that a client may mean by an id that it was given, or that it chose itself.

    These are ids of jobs, answers and lines of batches, ids of Celery tasks, and `ce_id`s of Kafka records.
    """
    if (derived := _DERIVED.fullmatch(given)) is not None:
        return [PREFIX + derived.group(1)]
    if len(given) > MAX_FOREIGN_CHARS or not given.isprintable():
        return []
    return [line_job_id(given, 0), record_job_id(record_digest("event", tenant, given))]
