"""Options of a prompt are bounded, and refused by name where they have no meaning."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.protocol import Message, PromptOptions, Request
from shared.validation.prompt_options import MAX_KWARGS_CHARS
from shared.validation.request_limits import Limits, check_request
from shared.validation.token_estimate import token_estimate

CHAT = (Message("user", "x" * 30),)
DEEP = "[" * 200 + "]" * 200


def request(*, prompt: str | tuple[int, ...] | None = None, cache_salt: str = "", **options: Any) -> Request:
    return Request(
        id="",
        model="m",
        prompt=prompt,
        messages=CHAT if prompt is None else None,
        prompt_options=PromptOptions(**options),
        cache_salt=cache_salt,
    )


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"continue_final_message": True}, "continue_final_message", "add_generation_prompt"),
        ({"chat_template_kwargs": "{"}, "chat_template_kwargs", "valid JSON"),
        ({"chat_template_kwargs": "[]"}, "chat_template_kwargs", "an object"),
        ({"chat_template_kwargs": f'{{"a": {DEEP}}}'}, "chat_template_kwargs", "nested deeper"),
        ({"chat_template_kwargs": '{"a": "\\ud800"}'}, "chat_template_kwargs", "surrogate"),
        ({"chat_template_kwargs": '{"messages": []}'}, "chat_template_kwargs", "the key messages"),
        ({"chat_template_kwargs": '{"add_generation_prompt": 0}'}, "chat_template_kwargs", "add_generation_prompt"),
        ({"chat_template_kwargs": json.dumps({str(i): i for i in range(65)})}, "chat_template_kwargs", "64 keys"),
        ({"chat_template_kwargs": f'{{"a": "{"x" * MAX_KWARGS_CHARS}"}}'}, "chat_template_kwargs", "65536"),
        ({"documents": "{}"}, "documents", "list of objects"),
        ({"documents": '["x"]'}, "documents", "list of objects"),
        ({"documents": json.dumps([{}] * 1025)}, "documents", "1024 entries"),
        ({"documents": json.dumps([{"text": "x" * 999_980}])}, "messages", "1000000 characters in all"),
        ({"reasoning_effort": "x" * 33}, "reasoning_effort", "32 characters"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "between -1"),
        ({"truncation_side": "middle"}, "truncation_side", "left or right"),
        ({"suffix": "x"}, "suffix", "with a prompt only"),
        ({"cache_salt": "x" * 257}, "cache_salt", "256 characters"),
        ({"prompt": (1, 2), "suffix": "x"}, "suffix", "not token ids"),
        ({"prompt": "x", "suffix": "x" * 1_000_000}, "suffix", "1000000 characters in all"),
        ({"prompt": "x", "add_generation_prompt": False}, "add_generation_prompt", "messages only"),
        ({"prompt": "x", "chat_template_kwargs": "{}"}, "chat_template_kwargs", "messages only"),
        ({"prompt": "x", "documents": "[]"}, "documents", "messages only"),
        ({"prompt": "x", "reasoning_effort": "low"}, "reasoning_effort", "messages only"),
    ],
)
def test_wrong_options_are_named(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        check_request(request(**fields), Limits())
    assert refused.value.param == param


def test_right_options_pass() -> None:
    chat = {
        "chat_template_kwargs": '{"enable_thinking": false, "deep": {"a": [1]}}',
        "documents": '[{"title": "a", "text": "b"}]',
        "reasoning_effort": "low",
        "truncate_prompt_tokens": -1,
        "add_special_tokens": True,
    }
    check_request(request(**chat, cache_salt="s"), Limits())
    check_request(request(continue_final_message=True, add_generation_prompt=False), Limits())
    check_request(request(prompt="x", suffix="y", truncate_prompt_tokens=5, truncation_side="right"), Limits())


def test_texts_of_options_count_as_text_of_the_prompt() -> None:
    plain = token_estimate(request())
    more = request(chat_template_kwargs=json.dumps({"a": "x" * 300}), documents=json.dumps([{"t": "x" * 300}]))
    assert 200 <= token_estimate(more) - plain < 220
    infilling = request(prompt="x")
    longer = msgspec.structs.replace(infilling, prompt_options=PromptOptions(suffix="x" * 300))
    assert 99 <= token_estimate(longer) - token_estimate(infilling) <= 101
