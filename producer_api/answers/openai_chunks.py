"""Parts shared by the streams of OpenAI's APIs.

A stream that fails after it began ends with `data: {"error": {…}}` and no `[DONE]`: the SDKs raise at the error,
and a client that only looks for `[DONE]` notices that the answer is incomplete. If it can be resumed, the event is
named `error`: an EventSource does not show that to the page as a chunk, and reconnects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from producer_api.http.errors import openai_error
from producer_api.http.sse import RETRY
from shared.errors import HeadraceError
from shared.protocol import Request, Token
from shared.schemas.openai.logprobs import PromptLogprobs, prompt_logprobs


@dataclass(frozen=True)
class PromptFacts:
    """Token ids of a prompt and their log-probabilities, each if its request asks for them."""

    token_ids: list[int] | UnsetType = UNSET
    logprobs: PromptLogprobs | UnsetType = UNSET

    @classmethod
    def from_prompt(cls, request: Request, prompt: Sequence[Token]) -> PromptFacts:
        params = request.params
        if not prompt:
            return cls()
        return cls(
            token_ids(prompt) if params.return_token_ids else UNSET,
            UNSET if params.prompt_logprobs is None else prompt_logprobs(prompt, params.prompt_logprobs),
        )


def token_ids(tokens: Iterable[Token]) -> list[int]:
    """Return the ids of tokens, without those that are unknown."""
    return [token.id for token in tokens if token.id >= 0]


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


def interruption(
    error: HeadraceError, *, resumable: bool, to_body: Callable[[HeadraceError], dict[str, Any]] = openai_error
) -> bytes:
    """Return the frames that end a stream before its answer has ended."""
    name = RETRY + b"event: error\n" if resumable and error.retryable else b""
    return name + b"data: %b\n\n" % msgspec.json.encode(to_body(error))
