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
_TOKEN_DEFAULTS = _encoder.encode(Token(0, 0, "")).removeprefix(b'[0,0,""')
_EVENT_DEFAULTS = _encoder.encode(TokenEvent(0, ())).removeprefix(b"[0,[]")


def encode(value: msgspec.Struct) -> bytes:
    """Return a protocol type as JSON."""
    return _encoder.encode(value)


def encode_event(event: TokenEvent) -> bytes:
    """Return an event as JSON, without the fields after a token's text if they have their defaults, and after the
    tokens.

    msgspec writes every field of a struct that is an array, also at its default. Nearly all events are tokens that
    have no other fields, and each is stored and sent to all readers. The defaults contain an empty string, which is
    found nowhere inside of another string, where quotes are escaped.
    """
    data = _encoder.encode(event).replace(_TOKEN_DEFAULTS, b"]")
    return data[: -len(_EVENT_DEFAULTS)] + b"]" if data.endswith(_EVENT_DEFAULTS) else data


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
