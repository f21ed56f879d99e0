"""JSON encoding of the protocol types, and job ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shared.protocol.event import Token, TokenEvent
from shared.protocol.recording import Recording
from shared.protocol.request import Request

_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(TokenEvent)
_recording_decoder = msgspec.json.Decoder(Recording)
_request_decoder = msgspec.json.Decoder(Request)


def encode(value: msgspec.Struct) -> bytes:
    """Return a protocol type as JSON."""
    return _encoder.encode(value)


def encode_event(event: TokenEvent) -> bytes:
    """Return an event as JSON, without the fields at the end of an event or a token that have their defaults.

    msgspec writes every field of a struct that is an array, also at its default. Nearly all events are tokens that
    have no other fields, and each is stored and sent to all readers.
    """
    return _encoder.encode(_fields(event))


def encode_events(events: Iterable[TokenEvent]) -> list[str]:
    """Return each event as `encode_event` does, as text; many cost less than one by one."""
    return _encoder.encode_lines([_fields(event) for event in events]).decode().split("\n")[:-1]


def _fields(event: TokenEvent) -> tuple[Any, ...]:
    """Return the fields of an event up to the last one that has not its default."""
    tokens = event.tokens
    shortened = (_shortened(tokens[0]),) if len(tokens) == 1 else [_shortened(token) for token in tokens]
    if event.terminal is None and event.prompt_usage is None and not event.prompt:
        return event.seq, shortened
    return event.seq, shortened, event.terminal, event.prompt, event.prompt_usage


def _shortened(token: Token) -> Token | tuple[int, int, str]:
    """Return a token without the fields after its text if all have their defaults.

    The fields are compared one by one because this is on the path of every token: to compare whole structs, or to
    replace the defaults in the encoded bytes, takes longer than to encode the token.
    """
    if token.finish_reason or token.logprobs or token.calls or token.reasoning or token.is_reasoning:
        return token
    return token if token.stop_reason is not None else (token.choice, token.id, token.text)


def decode_event(data: bytes) -> TokenEvent:
    """Return `data` as a TokenEvent. Raise msgspec.ValidationError or msgspec.DecodeError if it is not one."""
    return _event_decoder.decode(data)


def decode_recording(data: bytes) -> Recording:
    """Return `data` as a Recording. Raise msgspec.ValidationError or msgspec.DecodeError if it is not one."""
    return _recording_decoder.decode(data)


def decode_request(data: bytes) -> Request:
    """Return `data` as a Request. Raise msgspec.ValidationError or msgspec.DecodeError if it is not one."""
    try:
        return _request_decoder.decode(data)
    except UnicodeDecodeError:
        raise msgspec.DecodeError("not UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deep") from None
