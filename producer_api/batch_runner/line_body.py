"""Reads the body of a batch's line, or of a task, with the reader of the endpoint that its URL names."""

from __future__ import annotations

from producer_api.admission.parsed_body import ParsedBody
from producer_api.routes.catalog import BATCHABLE

CHAT = "/v1/chat/completions"


def read_body(url: str, body: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
    """Return a body as POST `url` takes it. Raises as BodyReader."""
    read = BATCHABLE[url].batchable
    assert read is not None
    return read(body, tenant, strict_fields=strict_fields)
