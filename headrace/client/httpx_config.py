"""Configuration of httpx for both clients, and the translation of its errors."""

from __future__ import annotations

import os

import httpx

from headrace.client.sans_io import Send
from shared.errors import ConfigError, InvalidRequest, Unavailable

READ_TIMEOUT_S = 60.0  # the server sends a comment at least every 15 s
TIMEOUT = httpx.Timeout(10, read=READ_TIMEOUT_S, pool=None)
# Each stream needs a connection; idle connections are closed after 5 s.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)


def credentials(api_key: str | None) -> dict[str, str]:
    """Return the header with `api_key` or HEADRACE_API_KEY. Raises ConfigError if it cannot be sent in a header."""
    key = os.environ.get("HEADRACE_API_KEY", "") if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError("api_key must consist of printable ASCII characters without spaces", param="api_key")
    return {"authorization": f"Bearer {key}"} if key else {}


def request_of(http: httpx.Client | httpx.AsyncClient, command: Send) -> httpx.Request:
    """Return a command's request. Raises InvalidRequest if its body cannot be JSON."""
    params = command.params or None
    try:
        return http.build_request(
            command.method, command.url, headers=command.headers, params=params, json=command.body
        )
    except ValueError as error:  # NaN, an infinite number, or half of a surrogate pair
        raise InvalidRequest(f"the request cannot be sent as JSON: {error}") from error


def unavailable(error: Exception) -> Unavailable:
    """Return the error for an exchange without a response."""
    where = ""
    if isinstance(error, httpx.RequestError):
        url = error.request.url
        where = f" at {url.scheme}://{url.netloc.decode()}"
    return Unavailable(f"no response from Headrace{where}: {error or type(error).__name__}")
