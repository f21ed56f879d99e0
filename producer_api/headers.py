"""Request headers that mean the same on every API: where a reader was, and which requests are one."""

from __future__ import annotations

from starlette.requests import Request

from producer_api.gateway.idempotency import HEADER, Key
from shared.errors import InvalidRequest

MOST_SEQ = 2**53  # beyond it a browser could not count
REPLAYED = {"idempotent-replayed": "true"}  # tells a client that its request came before


def idempotency_key(request: Request, *, tenant: str, kind: str, body: str) -> Key | None:
    """The key that the client gave for this `kind` of request and `body`. Raises InvalidRequest."""
    return Key.of(request.headers.getlist(HEADER), tenant=tenant, kind=kind, body=body)


def resume_point(request: Request, *, resumable: bool = True) -> int:
    """The last seq that the client has, -1 for none; the header is newer than the URL.

    Raises InvalidRequest, also where there is one and what is asked for is not `resumable`.
    """
    for name, given in (
        ("Last-Event-ID", request.headers.get("last-event-id")),
        ("after", request.query_params.get("after")),
    ):
        if given is not None:
            digits = given.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 16 and -1 <= int(given) <= MOST_SEQ):
                raise InvalidRequest(f"{name} must be the seq of a token, or -1 for the start", param=name)
            if int(given) >= 0 and not resumable:
                raise InvalidRequest(f"{name} resumes a stream that was begun with an {HEADER}", param=name)
            return int(given)
    return -1
