"""What the framings of OpenAI's streams share. It knows nothing of what a chunk says.

A stream that fails after it began ends with `data: {"error": {…}}` and no `[DONE]`: the SDKs raise at the error,
and a client that only looks for `[DONE]` sees that the answer is not whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from producer_api.http.errors import openai_error
from producer_api.http.sse import RETRY
from shared.errors import HeadraceError
from shared.protocol import Token
from shared.protocol import Usage as TokenUsage
from shared.schemas.common_fields import Usage


def usage_of(usage: TokenUsage) -> Usage:
    return Usage.from_counts(usage.prompt_tokens, usage.completion_tokens)


def by_choice(tokens: Sequence[Token]) -> Iterable[tuple[int, Sequence[Token]]]:
    """An event's tokens by their choice; nearly always it has one token."""
    if len(tokens) == 1:
        return ((tokens[0].choice, tokens),)
    found: dict[int, list[Token]] = {}
    for token in tokens:
        found.setdefault(token.choice, []).append(token)
    return found.items()


def frames(place: str, chunks: list[bytes]) -> bytes:
    """The chunks of one event. The id comes with the last: whoever saw less has not seen the event."""
    if not chunks:
        return b""
    *earlier, last = chunks
    return b"".join([b"data: %b\n\n" % chunk for chunk in earlier]) + b"id: %b\ndata: %b\n\n" % (
        place.encode(),
        last,
    )


def interruption(error: HeadraceError, *, resumable: bool) -> bytes:
    """The frames that end a stream whose answer has not ended."""
    if resumable and error.retryable:
        return RETRY + b": interrupted\n\n"
    return b"data: %b\n\n" % msgspec.json.encode(openai_error(error))
