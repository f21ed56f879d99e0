"""The private attribute of OpenAI's clients that makes their calls run once: it names an idempotency header.

The package makes a key for each call, the same for all its retries, but sends it only if a client names the header.
There is no public way to learn which requests are retries of one call.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

ATTRIBUTE = "_idempotency_header"
HEADER = "Idempotency-Key"

Client = TypeVar("Client")


def once(client: Client) -> Client:
    """Return a copy of a client of the `openai` package whose calls each run once on Headrace.

    Every call sends its own Idempotency-Key, and its retries send the same key. So a retry after a lost connection
    or a 503 joins the request instead of running it again. `extra_headers={"Idempotency-Key": …}` replaces the key.
    A request with a key continues if its client disconnects.

    Args:
        client: OpenAI, AsyncOpenAI, or a class derived from them. The copy shares its connections.

    Raises TypeError for anything else.
    """
    copy = getattr(client, "copy", None)
    if copy is None or not hasattr(client, ATTRIBUTE):
        raise TypeError(f"once() takes a client of the openai package, got {type(client).__name__}")
    copied: Any = copy()
    kind: Any = type(copied)
    copied.__class__ = _keyed(kind)
    return copied  # type: ignore[no-any-return]


@cache
def _keyed(kind: type) -> type:
    """Return a class whose clients, and their copies by `with_options`, name the header."""

    def named(self: object) -> str:
        return HEADER

    def keep(self: object, value: object) -> None:
        """Ignore what the package's constructor assigns."""

    return type(kind.__name__, (kind,), {ATTRIBUTE: property(named, keep)})
