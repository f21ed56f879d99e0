"""A request's texts as token ids, and the work that is done with that: tokenizing and detokenizing.

Tokenizing runs beside the worker's loop, so that no request waits for the text of another. It knows nothing of
engines.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.protocol import Detokenize, Embed, Request, Result, Tokenize
from shared.schemas.openapi_bounds import MOST_N
from shared.validation.request_limits import Limits, check_request
from workers.engine.interface import Encoder, check_vocabulary

BRIEF = 500  # characters; to encode them takes no longer than to wake a thread for it, some 0.3 ms
LONG = 65_536  # characters; more take above 20 ms on one core
THREADS = 2  # for all that is not long
LIMITS = Limits(n=MOST_N)  # what any front end may have admitted, whatever its settings


@dataclass(frozen=True)
class Encoded:
    """What an engine is given: a prompt, or inputs of `lengths` in a row. With a `result` all is done."""

    prompt: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    result: Result | None = None


class Encoding:
    """Encodes the requests of one worker: brief ones at once, long ones one at a time, others beside them.

    So the wait of a request depends on the texts of its own size only.

    Args:
        most_tokens: a text that is certain to have more is refused without tokenizing it.
    """

    def __init__(self, encoder: Encoder, most_tokens: int) -> None:
        self._encoder = encoder
        self._most_tokens = most_tokens
        self._usual = ThreadPoolExecutor(THREADS, "encode")
        self._long = ThreadPoolExecutor(1, "encode-long")

    async def encode(self, request: Request) -> Encoded:
        """Raises InvalidRequest, ContextLengthExceeded for what cannot be encoded; whatever the encoder raises."""
        length = size(request)
        if length <= BRIEF and request.work is None and request.tools is None:
            return encode(self._encoder, request, self._most_tokens)
        threads = self._usual if length <= LONG else self._long
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, encode, self._encoder, request, self._most_tokens)

    def close(self) -> None:
        """Begin nothing more."""
        for threads in (self._usual, self._long):
            threads.shutdown(wait=False, cancel_futures=True)


def size(request: Request) -> int:
    """Return the characters of a request's texts, and the ids in place of texts."""
    texts: list[str | tuple[int, ...]] = [request.prompt or ()]
    for message in request.messages or ():
        texts += [message.content, *(call.arguments for call in message.tool_calls)]
    for each in request.tools.functions if request.tools else ():
        texts += [each.description, each.parameters]
    if isinstance(request.work, Embed):
        texts += request.work.inputs
    return sum(map(len, texts))


def encode(encoder: Encoder, request: Request, most_tokens: int) -> Encoded:
    """Check a request and encode it.

    Raises InvalidRequest for what is out of bounds, cannot be encoded, or has no tokens; ContextLengthExceeded for
    a text that is certain to have more than `most_tokens`.
    """
    check_request(request, LIMITS)  # a queue may hold what no front end of this version has admitted
    work = request.work
    if isinstance(work, Tokenize):
        return Encoded(result=_tokenize(encoder, request, work, most_tokens))
    if isinstance(work, Detokenize):
        return Encoded(result=_detokenize(encoder, request, most_tokens))
    if isinstance(work, Embed):
        parts = [
            encoder.encode(given, most_tokens=most_tokens, param="input") if isinstance(given, str) else given
            for given in work.inputs
        ]
        if not all(parts):
            raise InvalidRequest("an input has no tokens", param="input")
        prompt = tuple(token for part in parts for token in part)
        return Encoded(prompt, tuple(map(len, parts)))
    ids = _ids(encoder, request, Tokenize(), most_tokens)
    if not ids:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    return Encoded(tuple(ids))


def _ids(encoder: Encoder, request: Request, how: Tokenize, most_tokens: int) -> list[int]:
    if request.messages is not None:
        special = how.special_tokens and request.work is not None  # templates write their own
        return encoder.encode_chat(
            request.messages,
            request.tools,
            generation_prompt=how.generation_prompt,
            special=special,
            most_tokens=most_tokens,
        )
    if isinstance(request.prompt, str):
        return encoder.encode(request.prompt, special=how.special_tokens, most_tokens=most_tokens)
    return list(request.prompt or ())


def _tokenize(encoder: Encoder, request: Request, how: Tokenize, most_tokens: int) -> Result:
    ids = _ids(encoder, request, how, most_tokens)
    return Result(tokens=tuple(ids), pieces=tuple(map(encoder.entry, ids)) if how.pieces else ())


def _detokenize(encoder: Encoder, request: Request, most_tokens: int) -> Result:
    ids = _ids(encoder, request, Tokenize(), most_tokens)
    check_vocabulary(ids, encoder.vocab_size, "tokens")
    return Result(text=encoder.decode_all(ids))
