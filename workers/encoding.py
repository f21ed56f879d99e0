"""A request's texts as token ids, and the work that is done with that: tokenizing and detokenizing.

It knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.protocol import Detokenize, Embed, Request, Result, Tokenize
from workers.engine.interface import Encoder, check_vocabulary

BRIEF = 500  # characters


@dataclass(frozen=True)
class Encoded:
    """What an engine is given: a prompt, or inputs of `lengths` in a row. With a `result` all is done."""

    prompt: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    result: Result | None = None


def is_brief(request: Request) -> bool:
    """Whether to encode it takes no longer than to wake a thread for it: some 0.3 ms."""
    if request.work is not None or request.tools:
        return False
    texts = [message.content for message in request.messages or ()]
    if isinstance(request.prompt, str):
        texts.append(request.prompt)
    return sum(map(len, texts)) <= BRIEF


def encode(encoder: Encoder, request: Request) -> Encoded:
    """Raises InvalidRequest for what cannot be encoded, or has no tokens."""
    work = request.work
    if isinstance(work, Tokenize):
        return Encoded(result=_tokenize(encoder, request, work))
    if isinstance(work, Detokenize):
        return Encoded(result=_detokenize(encoder, request))
    if isinstance(work, Embed):
        parts = [encoder.encode(given) if isinstance(given, str) else given for given in work.inputs]
        if not all(parts):
            raise InvalidRequest("an input has no tokens", param="input")
        prompt = tuple(token for part in parts for token in part)
        return Encoded(prompt, tuple(map(len, parts)))
    ids = _ids(encoder, request, Tokenize())
    if not ids:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    return Encoded(tuple(ids))


def _ids(encoder: Encoder, request: Request, how: Tokenize) -> list[int]:
    if request.messages is not None:
        special = how.special_tokens and request.work is not None  # templates write their own
        return encoder.encode_chat(
            request.messages, request.tools, generation_prompt=how.generation_prompt, special=special
        )
    if isinstance(request.prompt, str):
        return encoder.encode(request.prompt, special=how.special_tokens)
    return list(request.prompt or ())


def _tokenize(encoder: Encoder, request: Request, how: Tokenize) -> Result:
    ids = _ids(encoder, request, how)
    return Result(tokens=tuple(ids), pieces=tuple(map(encoder.entry, ids)) if how.pieces else ())


def _detokenize(encoder: Encoder, request: Request) -> Result:
    ids = _ids(encoder, request, Tokenize())
    check_vocabulary(ids, encoder.vocab_size, "tokens")
    return Result(text=encoder.decode_all(ids))
