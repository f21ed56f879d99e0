"""The oldest turns of a chat make room for the newest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shared.errors import ContextLengthExceeded
from shared.protocol import Message, Request, SamplingParams, ToolCall
from tests.support.fakes import MODEL
from workers.preparation.prompt_encoding import encode
from workers.preparation.turn_truncation import encode_newest
from workers.scripted_engine import ScriptedTokenizer

SYSTEM = Message("system", "s")


def call(name: str) -> Message:
    return Message("assistant", f"a{name}", tool_calls=(ToolCall(name, "f", "{}"),))


def result(name: str) -> Message:
    return Message("tool", f"r{name}", tool_call_id=name)


CHAT = [SYSTEM, *(Message(role, f"{role[0]}{i}") for i in range(3) for role in ("user", "assistant"))]
AGENT = [SYSTEM, Message("user", "u"), *(turn for i in "123" for turn in (call(i), result(i)))]
BOTH = [Message("user", "u0"), *AGENT[2:4], SYSTEM, Message("user", "u1"), *AGENT[4:], Message("assistant", "end")]


def kept(messages: Sequence[Message], room: int) -> str:
    """Return the texts that remain, where each message is a token."""
    texts: list[Sequence[Message]] = []

    def encoded(found: Sequence[Message]) -> list[int]:
        texts.append(found)
        if len(found) > room + 3:
            raise ContextLengthExceeded("certainly too long")
        return [0] * len(found)

    ids = encode_newest(messages, encoded, room)
    found = next(each for each in reversed(texts) if len(each) == len(ids))
    return " ".join(message.content for message in found)


@pytest.mark.parametrize(
    ("messages", "room", "texts"),
    [
        (CHAT, 7, "s u0 a0 u1 a1 u2 a2"),
        (CHAT, 6, "s u1 a1 u2 a2"),
        (CHAT, 4, "s u2 a2"),
        (CHAT, 1, "s u2 a2"),
        (AGENT, 7, "s u a2 r2 a3 r3"),
        (AGENT, 4, "s u a3 r3"),
        (BOTH, 9, "s u1 a2 r2 a3 r3 end"),
        (BOTH, 5, "s u1 a3 r3 end"),
        (BOTH, 3, "s u1 end"),
        ([call("1"), Message("user", "u"), result("1")], 2, "u"),
        ([SYSTEM], 0, "s"),
    ],
)
def test_as_few_turns_as_needed_are_dropped(messages: Sequence[Message], room: int, texts: str) -> None:
    assert kept(messages, room) == texts


def test_the_prompt_leaves_room_for_the_answer() -> None:
    messages = (Message("user", "x" * 30), Message("assistant", "x" * 30), Message("user", "y" * 30))
    for max_tokens, tokens in ((12, 113), (13, 36), (1000, 36)):
        request = Request(
            id="1",
            model=MODEL,
            messages=messages,
            params=SamplingParams(max_tokens=max_tokens),
            drop_oldest_turns=True,
        )
        assert len(encode(ScriptedTokenizer(), request, 125).prompt) == tokens
