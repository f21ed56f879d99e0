"""The target of a request for its first token, as headers or metadata have it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from shared.errors import InvalidRequest
from shared.protocol import Request

TARGET_HEADERS = ("x-headrace-ttft-target-ms", "x-llm-d-slo-ttft-ms")  # the first that is sent counts
POLICY_HEADER = "x-headrace-ttft-policy"
HEADERS = (*TARGET_HEADERS, POLICY_HEADER)
BEST_EFFORT, REFUSE = "best-effort", "refuse"
MAX_TARGET_MS = 3_600_000
INTEGER = re.compile(r"[0-9]{1,7}", re.ASCII)


def joined(values: Iterable[str]) -> str:
    """Return the value of a header that was sent with these values: different ones together, separated by commas.

    RFC 9110, 5.3. So no one value of several counts unseen: a number that is sent twice is no number.
    """
    return ", ".join(dict.fromkeys(values))


def with_turn_of(request: Request, draft: Request) -> Request:
    """Return `draft` with the class, the deadline and the target of `request`, with which it belongs."""
    return msgspec.structs.replace(
        draft,
        priority=request.priority,
        deadline=request.deadline,
        ttft_target=request.ttft_target,
        refuse_late=request.refuse_late,
    )


def without_target(request: Request) -> Request:
    """Return a request that is sent again, or copied: its target was for its first run."""
    return msgspec.structs.replace(request, ttft_target=None, refuse_late=False)


def with_target(draft: Request, headers: Mapping[str, str]) -> Request:
    """Return `draft` with the target and the policy in `headers`. Raises InvalidRequest."""
    if not headers:
        return draft
    name = next((each for each in TARGET_HEADERS if each in headers), None)
    policy = headers.get(POLICY_HEADER, BEST_EFFORT)
    if policy not in (BEST_EFFORT, REFUSE):
        raise InvalidRequest(f"{POLICY_HEADER} must be {BEST_EFFORT} or {REFUSE}", param=POLICY_HEADER)
    if name is None:
        if policy == REFUSE:
            raise InvalidRequest(f"{POLICY_HEADER} {REFUSE} needs {TARGET_HEADERS[0]}", param=POLICY_HEADER)
        return draft
    value = headers[name].strip(" \t")
    if not INTEGER.fullmatch(value) or not 1 <= int(value) <= MAX_TARGET_MS:
        raise InvalidRequest(f"{name} must be an integer between 1 and {MAX_TARGET_MS}", param=name)
    return msgspec.structs.replace(draft, ttft_target=int(value) / 1000, refuse_late=policy == REFUSE)
