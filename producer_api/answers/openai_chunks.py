"""Parts shared by the streams of OpenAI's APIs.

A stream that fails after it began ends with `data: {"error": {…}}` and no `[DONE]`: the SDKs raise at the error,
and a client that only looks for `[DONE]` notices that the answer is incomplete. If it can be resumed, the event is
named `error`: an EventSource does not show that to the page as a chunk, and reconnects.
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
    """Group the tokens of an event by choice. An event nearly always has one token."""
    if len(tokens) == 1:
        return ((tokens[0].choice, tokens),)
    found: dict[int, list[Token]] = {}
    for token in tokens:
        found.setdefault(token.choice, []).append(token)
    return found.items()


def frames(place: str, chunks: list[bytes]) -> bytes:
    """Return the frames of one event. Only the last has the id: a client that saw less has not seen the event."""
    if not chunks:
        return b""
    *earlier, last = chunks
    return b"".join([b"data: %b\n\n" % chunk for chunk in earlier]) + b"id: %b\ndata: %b\n\n" % (
        place.encode(),
        last,
    )


def interruption(error: HeadraceError, *, resumable: bool) -> bytes:
    """Return the frames that end a stream before its answer has ended."""
    name = RETRY + b"event: error\n" if resumable and error.retryable else b""
    return name + b"data: %b\n\n" % msgspec.json.encode(openai_error(error))
