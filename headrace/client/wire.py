"""What both clients ask of httpx, and its errors in our words."""

from __future__ import annotations

import httpx

from shared.errors import Unavailable

SILENCE = 60.0  # seconds; the server sends a comment at least every 15
TIMEOUT = httpx.Timeout(10, read=SILENCE, pool=None)
# A stream holds a connection; idle ones close after 5 s.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
TROUBLE = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)


def lost(error: Exception) -> Unavailable:
    """An exchange that failed on the way."""
    where = ""
    if isinstance(error, httpx.RequestError):
        url = error.request.url
        where = f" at {url.scheme}://{url.netloc.decode()}"
    return Unavailable(f"no Headrace answers{where}: {error or type(error).__name__}")
