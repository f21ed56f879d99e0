"""Fields beyond OpenAI's types, as other packages add them, sent by OpenAI's package."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI

from tests.support.fakes import MODEL

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3}


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_are_named_in_a_header(sdk: AsyncOpenAI, stream: bool) -> None:
    extra = {"keep_alive": "5m", "options": {}}
    raw = await sdk.with_raw_response.chat.completions.create(**CHAT, stream=stream, extra_body=extra)
    assert raw.headers["x-headrace-ignored-fields"] == "keep_alive, options"


async def test_a_message_object_with_other_fields_is_sent_back(sdk: AsyncOpenAI) -> None:
    """Given an answer's message with fields of other packages, known ones are accepted, others are named."""
    message = (await sdk.chat.completions.create(**CHAT)).choices[0].message
    message = message.model_copy(update={"reasoning_content": "hm", "provider_specific_fields": {"a": 1}})
    following = [*MESSAGES, message, {"role": "user", "content": "again"}]
    raw = await sdk.with_raw_response.chat.completions.create(**CHAT | {"messages": following})
    assert raw.parse().usage.completion_tokens == 3
    assert raw.headers["x-headrace-ignored-fields"] == "messages[1].provider_specific_fields"
