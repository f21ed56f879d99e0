"""Keys and prefixes of requests."""

from __future__ import annotations

import pytest

from shared.protocol import Embed, Function, Message, Request, Tools
from shared.routing.traits import MAX_PREFIXES, RequestTraits, traits_of
from shared.settings import RoutingKey

SYSTEM = Message("system", "Be brief. " * 200)
FIRST, ANSWER, SECOND = Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "More")


def chat(*messages: Message, key: RoutingKey = "session", **fields: object) -> RequestTraits:
    return traits_of(Request(id="req_1", model="m", messages=messages, **fields), key)


def text(prompt: str | tuple[int, ...], key: RoutingKey = "session", **fields: object) -> RequestTraits:
    return traits_of(Request(id="req_1", model="m", prompt=prompt, **fields), key)


def shared(one: RequestTraits, other: RequestTraits) -> int:
    """Return how many prefixes two requests share; the rest differ."""
    pairs = zip(one.prefixes, other.prefixes, strict=False)
    same = [a == b for a, b in pairs]
    assert same == sorted(same, reverse=True)
    return sum(same)


def test_the_next_turn_has_all_prefixes_of_the_one_before() -> None:
    one, two = chat(SYSTEM, FIRST), chat(SYSTEM, FIRST, ANSWER, SECOND)
    assert shared(one, two) == len(one.prefixes) >= 3
    assert len(two.prefixes) > len(one.prefixes)
    assert shared(two, chat(SYSTEM, SECOND)) == len(one.prefixes) - 1


def test_prefixes_differ_by_tenant_salt_and_tools() -> None:
    one = chat(SYSTEM, FIRST, tenant="a")
    assert shared(one, chat(SYSTEM, FIRST, tenant="b")) == 0
    assert shared(one, chat(SYSTEM, FIRST, tenant="a", cache_salt="s")) == 0
    assert shared(one, chat(SYSTEM, FIRST, tenant="a", tools=Tools((Function("f"),)))) == 0
    assert shared(one, chat(SYSTEM, FIRST, tenant="a", user="someone")) == len(one.prefixes)


def test_prompts_of_text_and_of_ids_share_their_beginnings() -> None:
    assert shared(text("x" * 1500 + "a"), text("x" * 1500 + "b")) == 2
    assert shared(text((1,) * 300 + (2,)), text((1,) * 300 + (3,))) == 4
    assert len(text("x" * 1_000_000).prefixes) == MAX_PREFIXES
    assert text("").prefixes == ()
    assert text("\ud800").prefixes


def test_the_turns_of_a_session_share_a_key() -> None:
    assert chat(SYSTEM, FIRST).key == chat(SYSTEM, FIRST, ANSWER, SECOND).key
    assert chat(SYSTEM, FIRST).key != chat(SYSTEM, SECOND).key
    assert chat(SYSTEM, FIRST).key != chat(SYSTEM, FIRST, tenant="other").key


def test_a_user_has_one_key_and_without_one_the_session_counts() -> None:
    assert chat(FIRST, key="user", user="u").key == chat(SECOND, key="user", user="u").key
    assert chat(FIRST, key="user", user="u").key != chat(FIRST, key="user", user="v").key
    assert chat(FIRST, key="user").key == chat(FIRST).key


@pytest.mark.parametrize("key", ["session", "prefix"])
def test_equal_beginnings_of_prompts_have_one_key(key: RoutingKey) -> None:
    assert text("x" * 1024 + "a", key).key == text("x" * 1024 + "b", key).key
    assert text("x" * 1023 + "a", key).key != text("x" * 1023 + "b", key).key


def test_requests_without_a_prompt_have_keys_of_their_own() -> None:
    def embed(job_id: str, *inputs: str) -> bytes:
        return traits_of(Request(id=job_id, model="m", work=Embed(inputs)), "session").key

    assert embed("req_1", "") != embed("req_2", "")
    assert embed("req_1", "text") == embed("req_2", "text")
