"""Tokens of the log across versions."""

from __future__ import annotations

import msgspec

from shared.protocol import Token, TokenEvent, decode_event, encode


def test_tokens_of_an_earlier_version_have_no_reasoning() -> None:
    stored = b'[3,[[0,7,"a",null,null,[]]],null,[]]'
    assert decode_event(stored) == TokenEvent(3, (Token(0, 7, "a"),))
    assert decode_event(encode(decode_event(stored))) == decode_event(stored)


def test_readers_of_an_earlier_version_take_tokens_of_reasoning() -> None:
    class EarlierToken(msgspec.Struct, array_like=True):
        choice: int
        id: int
        text: str

    written = encode(Token(0, 7, "", reasoning="a", is_reasoning=True))
    assert msgspec.json.decode(written, type=Token).reasoning == "a"
    assert msgspec.json.decode(written, type=EarlierToken) == EarlierToken(0, 7, "")
