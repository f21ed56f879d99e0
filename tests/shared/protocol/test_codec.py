"""Events survive their encoding, and tokens have no bytes for what a request does not ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol import (
    CallDelta,
    FinishReason,
    PromptUsage,
    RequestState,
    Terminal,
    Token,
    TokenEvent,
    TokenLogprobs,
    Usage,
    decode_event,
    encode,
    encode_event,
    encode_events,
)
from shared.schemas.native.jobs import JobRequest

LOGPROBS = st.builds(
    TokenLogprobs,
    st.just(-0.5),
    st.sampled_from([(), ((7, -0.5, "a"), (8, -1.5, "\ufffd"))]),
    st.just("a"),
    st.sampled_from([{}, {8: b"\xf0\x9f"}]),
    st.integers(0, 3),
)
TOKENS = st.builds(
    Token,
    st.integers(0, 2),
    st.integers(0, 9),
    st.text(max_size=3),
    st.none() | st.just(FinishReason.STOP),
    st.none() | LOGPROBS,
    st.sampled_from([(), (CallDelta(0, "f", "{"),)]),
    st.sampled_from(["", "hm"]),
    st.booleans(),
    st.sampled_from([None, 0, "a"]),
)
EVENTS = st.builds(
    TokenEvent,
    st.integers(0, 3),
    st.lists(TOKENS, max_size=3).map(tuple),
    st.none() | st.just(Terminal(RequestState.COMPLETED, Usage(3, 1, 2))),
    st.sampled_from([(), (Token(0, 1, "p"),)]),
    st.none() | st.just(PromptUsage(3, 2)),
)


@given(EVENTS)
def test_an_event_survives_its_encoding(event: TokenEvent) -> None:
    assert decode_event(encode_event(event)) == event
    assert encode_events([event, event]) == [encode_event(event).decode()] * 2
    assert decode_event(encode(event)) == event, "as earlier versions wrote it"


def test_a_token_without_further_fields_is_three_values() -> None:
    assert encode_event(TokenEvent(3, (Token(0, 7, "a"), Token(1, 8, "b")))) == b'[3,[[0,7,"a"],[1,8,"b"]]]'


OTHERS = {
    "finish_reason": FinishReason.STOP,
    "logprobs": TokenLogprobs(-0.5),
    "calls": (CallDelta(0, "f"),),
    "reasoning": "hm",
    "is_reasoning": True,
    "stop_reason": 0,
}


@pytest.mark.parametrize("name", Token.__struct_fields__[3:])
def test_no_field_of_a_token_is_lost(name: str) -> None:
    event = TokenEvent(3, (Token(0, 7, "a", **{name: OTHERS[name]}),))
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    "data",
    [
        b'[3,[[0,7,"a",null,null,[]]],null,[]]',
        b'[3,[[0,7,"a",null,[-0.5,[[7,-0.5,"a"]],"a"],[]]],null,[]]',
        b'[0,[[0,7,"a",null,null,[]]],null,[[0,1,"p",null,null,[]]]]',
        b'[1,[],{"state":"cancelled","usage":{"prompt_tokens":3,"completion_tokens":1},"waited":0.5}]',
    ],
)
def test_events_of_earlier_versions_are_read(data: bytes) -> None:
    event = decode_event(data)
    assert (event.prompt_usage, event.count) == (None, 1)
    assert all(token.logprobs is None or token.logprobs.exact == {} for token in event.tokens)
    if event.terminal is not None:
        assert event.terminal.usage.cached_tokens == 0


def test_prompt_options_that_were_not_given_are_not_sent() -> None:
    plain = JobRequest(model="m", prompt="x").to_request("t")
    truncated = JobRequest(model="m", prompt="x", truncate_prompt_tokens=9).to_request("t")  # type: ignore[call-arg]
    assert b"prompt_options" not in encode(plain)
    assert b'"prompt_options":{"truncate_prompt_tokens":9}' in encode(truncated)
