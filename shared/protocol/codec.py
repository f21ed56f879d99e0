"""JSON encoding of the protocol types, and job ids."""

from __future__ import annotations

import secrets
import time

import msgspec

from shared.protocol.event import Token, TokenEvent
from shared.protocol.request import Request

_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(TokenEvent)
_request_decoder = msgspec.json.Decoder(Request)


def encode(value: msgspec.Struct) -> bytes:
    """Return a protocol type as JSON."""
    return _encoder.encode(value)


def encode_event(event: TokenEvent) -> bytes:
    """Return an event as JSON, and tokens of an answer without what only some requests ask for.

    msgspec writes every field of a struct that is an array, also at its default. Nearly all events are tokens that
    have no other fields, and each is stored and sent to all readers.
    """
    if event != TokenEvent(event.seq, event.tokens):
        return _encoder.encode(event)
    return _encoder.encode((event.seq, [_shortest(token) for token in event.tokens]))


def _shortest(token: Token) -> Token | tuple[int, int, str]:
    """Return the token without the fields after its text if they have their defaults."""
    plain = Token(token.choice, token.id, token.text)
    return (token.choice, token.id, token.text) if token == plain else token


def decode_event(data: bytes) -> TokenEvent:
    """Return `data` as a TokenEvent. Raise msgspec.ValidationError or msgspec.DecodeError if it is not one."""
    return _event_decoder.decode(data)


def decode_request(data: bytes) -> Request:
    """Return `data` as a Request. Raise msgspec.ValidationError or msgspec.DecodeError if it is not one."""
    try:
        return _request_decoder.decode(data)
    except UnicodeDecodeError:
        raise msgspec.DecodeError("not UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deep") from None


def new_job_id() -> str:
    """Return a sortable, unguessable id: 48 bits of milliseconds, then 80 random bits."""
    return f"req_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
