"""What both clients ask of httpx, and its errors in our words."""

from __future__ import annotations

import os

import httpx

from shared.errors import ConfigError, Unavailable

SILENCE = 60.0  # seconds; the server sends a comment at least every 15
TIMEOUT = httpx.Timeout(10, read=SILENCE, pool=None)
# A stream holds a connection; idle ones close after 5 s.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
TROUBLE = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)


def credentials(api_key: str | None) -> dict[str, str]:
    """The header of `api_key`, or of the environment's. Raises ConfigError for what no header can hold."""
    key = os.environ.get("HEADRACE_API_KEY", "") if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError("the API key has characters that no key has", param="api_key")
    return {"authorization": f"Bearer {key}"} if key else {}


def lost(error: Exception) -> Unavailable:
    """An exchange that failed on the way."""
    where = ""
    if isinstance(error, httpx.RequestError):
        url = error.request.url
        where = f" at {url.scheme}://{url.netloc.decode()}"
    return Unavailable(f"no Headrace answers{where}: {error or type(error).__name__}")
