"""Request headers that mean the same on every API: where a reader was, and which requests are one."""

from __future__ import annotations

import re

from pydantic import BaseModel
from starlette.requests import Request

from producer_api.admission.idempotency import HEADER, IdempotencyKey
from producer_api.http.json_body import off_loop
from shared.errors import InvalidRequest

LAST = "Last-Event-ID"
SEQ = re.compile(r"-1|[0-9]{1,16}")
MOST_SEQ = 2**53  # beyond it a browser could not count
REPLAYED = {"idempotent-replayed": "true"}  # tells a client that its request came before


async def idempotency_key(request: Request, *, tenant: str, kind: str, body: BaseModel) -> IdempotencyKey | None:
    """The key that the client gave for this `kind` of request and `body`. Raises InvalidRequest."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    return await off_loop(
        request, lambda: IdempotencyKey.from_header(given, tenant=tenant, kind=kind, body=body.model_dump_json())
    )


def resume_point(request: Request, query: str = "after", *, resumable: bool = True) -> int:
    """The last seq that the client has, -1 for none; the header is newer than the URL's `query`.

    Raises InvalidRequest, also where there is one and what is asked for is not `resumable`.
    """
    for name, given in (
        (LAST, request.headers.get("last-event-id")),
        (query, request.query_params.get(query)),
    ):
        if given is not None:
            if not SEQ.fullmatch(given) or int(given) > MOST_SEQ:
                raise InvalidRequest(f"{name} must be the number that a frame has as its id, or -1", param=name)
            if int(given) >= 0 and not resumable:
                raise InvalidRequest(f"{name} resumes a stream that was begun with an {HEADER}", param=name)
            return int(given)
    return -1


def resume_places(request: Request, count: int, *, resumable: bool) -> list[int]:
    """The same for a stream of `count` answers, whose frames' ids are the seqs of all, joined by dots."""
    if count == 1:
        return [resume_point(request, resumable=resumable)]
    given = request.headers.get("last-event-id", "-1").split(".")
    if given == ["-1"]:
        return [-1] * count
    if len(given) != count or not all(SEQ.fullmatch(each) and int(each) <= MOST_SEQ for each in given):
        raise InvalidRequest("Last-Event-ID must be the id of a frame of this stream, or -1", param="Last-Event-ID")
    if not resumable:
        raise InvalidRequest(
            f"Last-Event-ID resumes a stream that was begun with an {HEADER}", param="Last-Event-ID"
        )
    return [int(each) for each in given]
