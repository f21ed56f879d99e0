"""W3C Trace Context: the header `traceparent`, checked and bounded."""

from __future__ import annotations

import hashlib
import re

# Version 00 has nothing after the flags; a later version may add fields, which are not passed on.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
MAX_LENGTH = 512


def valid_traceparent(given: str) -> str:
    """Return a valid `traceparent` without what later versions add, and an empty string for an invalid one."""
    found = TRACEPARENT.match(given) if len(given) <= MAX_LENGTH else None
    if found is None:
        return ""
    rest = given[found.end() :]
    if rest and (given.startswith("00") or not rest.startswith("-")):
        return ""
    return f"00{found[0][2:]}"


def trace_id_of(traceparent: str) -> str:
    """Return the trace id of a valid `traceparent`; an empty string for an empty one."""
    return traceparent[3:35]


def run_traceparent(traceparent: str, job_id: str, epoch: int) -> str:
    """Return the trace context of the run of a job under a lease epoch, in the trace of `traceparent` if it is set.

    It follows from its arguments, so that the next worker can name the run of a worker that was lost.
    """
    trace_id = trace_id_of(traceparent) or _digest(job_id, 32)
    return f"00-{trace_id}-{_digest(f'{job_id}/{epoch}', 16)}-01"


def _digest(name: str, hex_digits: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:hex_digits]
