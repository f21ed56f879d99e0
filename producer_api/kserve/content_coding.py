"""Content codings of bodies: gzip and deflate.

Reference: RFC 9110, 8.4.1; the coding `deflate` is the format zlib.
"""

from __future__ import annotations

import zlib
from functools import partial

from starlette.requests import Request

from producer_api.http.json_body import read_bytes
from producer_api.services import Context
from shared.errors import MalformedBody, NotSupported, PayloadTooLarge

COMPRESSION_LEVEL = 1  # of tensors, where more takes long and gains little
WINDOW_BITS = {"gzip": 31, "deflate": 15}  # of zlib


async def read_payload(context: Context, request: Request) -> bytes:
    """Return a body without its content coding.

    Raises MalformedBody, NotSupported, PayloadTooLarge, ClientGone.
    """
    data = await read_bytes(request)
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return data
    if coding not in WINDOW_BITS:
        raise NotSupported(f"content-encoding must be {' or '.join(WINDOW_BITS)}", param="content-encoding")
    most = context.settings.max_body_bytes
    return await context.threads.run(most, partial(inflate, data, coding, most))  # few bytes may become many


def inflate(data: bytes, coding: str, most: int) -> bytes:
    """Return the decompressed data. Raises MalformedBody; PayloadTooLarge for more than `most` bytes."""
    decompressor = zlib.decompressobj(wbits=WINDOW_BITS[coding])
    try:
        found = decompressor.decompress(data, most + 1)
    except zlib.error:
        raise MalformedBody(f"the body is not valid {coding}") from None
    if len(found) > most:
        raise PayloadTooLarge(f"the decompressed body must have at most {most} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedBody(f"the body is not valid {coding}")
    return found


def deflate(body: bytes, headers: dict[str, str], accepted: str) -> tuple[bytes, dict[str, str]]:
    """Return the body in the content coding that its client accepts, if that is a single one, and its headers.

    HTTP libraries accept several without a need for any; compressing tensors for them would only take time.
    """
    coding = accepted.strip().lower()
    if coding not in WINDOW_BITS:
        return body, headers
    compressor = zlib.compressobj(COMPRESSION_LEVEL, wbits=WINDOW_BITS[coding])
    return compressor.compress(body) + compressor.flush(), {**headers, "content-encoding": coding}
