"""Request headers that all APIs share: Idempotency-IdempotencyKey and Last-Event-ID."""

from __future__ import annotations

import re

from pydantic import BaseModel
from starlette.requests import Request

from producer_api.admission.idempotency import HEADER, IdempotencyKey
from producer_api.http.json_body import off_loop
from shared.errors import InvalidRequest

LAST_EVENT_ID = "Last-Event-ID"
SEQ = re.compile(r"-1|[0-9]{1,16}")
MAX_SEQ = 2**53  # the largest integer that a browser counts exactly
REPLAYED = {"idempotent-replayed": "true"}  # the request was made before, under the same key


async def idempotency_key(request: Request, *, tenant: str, kind: str, body: BaseModel) -> IdempotencyKey | None:
    """Return the client's key for this `kind` of request and `body`. Raises InvalidRequest."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    return await off_loop(
        request, lambda: IdempotencyKey.from_header(given, tenant=tenant, kind=kind, body=body.model_dump_json())
    )


def resume_point(request: Request, query: str = "after", *, resumable: bool = True) -> int:
    """Return the last seq that the client has, -1 for none; the header takes precedence over the URL's `query`.

    Raises InvalidRequest, also for a seq where the answer is not `resumable`.
    """
    for name, given in (
        (LAST_EVENT_ID, request.headers.get("last-event-id")),
        (query, request.query_params.get(query)),
    ):
        if given is not None:
            if not SEQ.fullmatch(given) or int(given) > MAX_SEQ:
                raise InvalidRequest(f"{name} must be the id of a frame, a number, or -1", param=name)
            if int(given) >= 0 and not resumable:
                raise InvalidRequest(f"{name} is only allowed for a stream that has an {HEADER}", param=name)
            return int(given)
    return -1


def resume_points(request: Request, count: int, *, resumable: bool) -> list[int]:
    """Return the same for each of `count` answers in one stream, whose ids are their seqs joined by dots."""
    if count == 1:
        return [resume_point(request, resumable=resumable)]
    given = request.headers.get("last-event-id", "-1").split(".")
    if given == ["-1"]:
        return [-1] * count
    if len(given) != count or not all(SEQ.fullmatch(each) and int(each) <= MAX_SEQ for each in given):
        raise InvalidRequest(
            f"{LAST_EVENT_ID} must be the id of a frame of this stream, or -1", param=LAST_EVENT_ID
        )
    if not resumable:
        raise InvalidRequest(
            f"{LAST_EVENT_ID} is only allowed for a stream that has an {HEADER}", param=LAST_EVENT_ID
        )
    return [int(each) for each in given]
