"""Bodies of the requests to upstream servers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.models.upstream import ServerKind
from shared.protocol import (
    Function,
    Message,
    PromptOptions,
    Request,
    SamplingParams,
    Structured,
    Token,
    ToolCall,
    Tools,
)
from workers.runtimes.upstream.body import BodyWriter
from workers.runtimes.upstream.dialects import DIALECTS
from workers.runtimes.upstream.progress import Progress

KINDS: tuple[ServerKind, ...] = ("vllm", "sglang", "llamacpp", "other")
TOOL = Function("look", "Look it up.", '{"type": "object"}', strict=True)
CHAT = (Message("system", "Be brief."), Message("user", "hi"))


def request(messages: tuple[Message, ...] | None = CHAT, **fields: Any) -> Request:
    return Request(id="req_1", model="m", messages=messages, **fields)


def completion(prompt: str | tuple[int, ...] = "once", **params: Any) -> Request:
    return Request(id="req_1", model="m", prompt=prompt, params=SamplingParams(**params))


def writer(made: Request, kind: ServerKind = "other") -> BodyWriter:
    return BodyWriter(made, "theirs", DIALECTS[kind])


def body(made: Request, kind: ServerKind = "other") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(writer(made, kind).whole())
    return found


def test_a_plain_chat_has_openais_fields_only() -> None:
    made = request(params=SamplingParams(max_tokens=9, seed=2**40 + 3))
    assert body(made) == {
        "model": "theirs",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "seed": 3,
    }
    assert writer(made).route == "/chat/completions"


def test_an_answer_without_max_tokens_has_no_limit() -> None:
    assert "max_tokens" not in body(request())


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
def test_defaults_that_the_server_may_change_are_sent(kind: ServerKind) -> None:
    found = body(request(), kind)
    penalty = "repeat_penalty" if kind == "llamacpp" else "repetition_penalty"
    assert (found["temperature"], found["top_p"], found["top_k"], found["min_p"], found[penalty]) == (1, 1, 0, 0, 1)
    assert body(request(params=SamplingParams(temperature=0.0)), kind)["top_k"] == 1  # cheaper, and the same answer


def test_all_sampling_fields_are_passed_on() -> None:
    params = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "stop": ("a", "b"),
        "seed": -5,
        "n": 2,
        "ignore_eos": True,
        "min_tokens": 3,
        "stop_token_ids": (4,),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "bad_words": ("c",),
        "allowed_token_ids": (5, 6),
        "thinking_token_budget": 8,
        "logit_bias": {9: 1.5},
    }
    found = body(completion(max_tokens=9, logprobs=2, **params), "vllm")
    expected = json.loads(json.dumps({**params, "max_tokens": 9, "logprobs": 2}))
    assert {name: found[name] for name in expected} == expected
    assert found["prompt"] == "once"


def test_what_the_server_lacks_is_refused_by_name() -> None:
    asked = completion(typical_p=0.5)
    assert body(asked, "llamacpp")["typical_p"] == 0.5
    for kind in ("vllm", "sglang", "other"):
        with pytest.raises(InvalidRequest, match="typical_p"):
            body(asked, kind)
    for kind in ("vllm", "sglang", "llamacpp", "other"):
        with pytest.raises(InvalidRequest, match="watermark"):
            body(completion(watermark=True), kind)


def test_prompts_of_token_ids_go_as_ids() -> None:
    made = completion((1, 2, 3))
    assert body(made)["prompt"] == [1, 2, 3]
    assert writer(made).route == "/completions"


def test_log_probabilities_have_the_form_of_chats() -> None:
    found = body(request(params=SamplingParams(logprobs=3)))
    assert (found["logprobs"], found["top_logprobs"]) == (True, 3)


def test_tools_and_earlier_calls_are_passed_on() -> None:
    turns = (
        Message("user", "where?"),
        Message("assistant", "", (ToolCall("call_1", "look", "{}"),), reasoning="hm"),
        Message("tool", "here", tool_call_id="call_1"),
    )
    tools = Tools((TOOL, Function("other")), only=("look",), parallel=False)
    found = body(request(turns, tools=tools), "vllm")
    assert found["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "Look it up.",
                "parameters": {"type": "object"},
                "strict": True,
            },
        }
    ]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("auto", False)
    assert found["messages"][1] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    }
    assert found["messages"][2]["tool_call_id"] == "call_1"


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (Tools((TOOL,), required=True), "required"),
        (Tools((TOOL,), named="look"), {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_the_choice_of_a_tool_is_passed_on(tools: Tools, choice: object) -> None:
    assert body(request(tools=tools))["tool_choice"] == choice


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_response_formats(kind: ServerKind) -> None:
    form = Structured(json_schema='{"type": "string"}', strict=False)
    found = body(request(params=SamplingParams(structured_outputs=form)), kind)
    schema = {"name": "answer", "schema": {"type": "string"}, "strict": False}
    assert found["response_format"] == {"type": "json_schema", "json_schema": schema}


def test_grammars_have_the_servers_names() -> None:
    made = request(params=SamplingParams(structured_outputs=Structured(grammar='root ::= "a"')))
    assert body(made, "vllm")["structured_outputs"] == {"grammar": 'root ::= "a"'}
    assert body(made, "llamacpp")["grammar"] == 'root ::= "a"'
    assert body(made, "sglang")["ebnf"] == 'root ::= "a"'


@pytest.mark.parametrize(
    ("made", "kind", "param"),
    [
        (completion(max_tokens=0), "vllm", "max_tokens"),
        (completion(prompt_logprobs=1), "vllm", "prompt_logprobs"),
        (completion(return_token_ids=True), "llamacpp", "return_token_ids"),
        (completion(echo=True, logprobs=1), "vllm", "echo"),
        (completion((1, 2), echo=True), "vllm", "echo"),
        (completion(bad_words=("x",)), "llamacpp", "bad_words"),
        (completion(min_tokens=4), "llamacpp", "min_tokens"),
        (request(prompt_options=PromptOptions(truncate_prompt_tokens=4)), "sglang", "truncate_prompt_tokens"),
        (completion(structured_outputs=Structured(regex="a+")), "llamacpp", "structured_outputs"),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused_by_name(made: Request, kind: ServerKind, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        writer(made, kind)
    assert refused.value.param == param


def test_options_of_the_prompt_are_passed_on() -> None:
    options = PromptOptions(chat_template_kwargs='{"a": 1}', documents='[{"b": 2}]', reasoning_effort="low")
    found = body(request(prompt_options=options), "vllm")
    assert (found["chat_template_kwargs"], found["documents"]) == ({"a": 1}, [{"b": 2}])
    assert found["reasoning_effort"] == "low"


def test_tenants_share_no_prefix_cache() -> None:
    mine, theirs = (body(request(tenant=tenant), "vllm")["cache_salt"] for tenant in ("a", "b"))
    assert mine != theirs
    assert "cache_salt" not in body(request(), "llamacpp")


def written(*tokens: Token, n: int = 1) -> Progress:
    return Progress(n, tokens)


def test_a_chat_continues_its_last_message() -> None:
    made = request(params=SamplingParams(max_tokens=9))
    progress = written(Token(0, -1, "The"), Token(0, -1, " mill"))
    found = json.loads(writer(made, "llamacpp").rest(progress.choices[0]))
    assert writer(made, "llamacpp").can_continue(progress)
    assert found["messages"][-1] == {"role": "assistant", "content": "The mill"}
    assert (found["continue_final_message"], found["add_generation_prompt"]) == (True, False)
    assert found["max_tokens"] == 7


def test_a_message_that_the_request_continues_grows() -> None:
    options = PromptOptions(add_generation_prompt=False, continue_final_message=True)
    made = request((*CHAT, Message("assistant", "The")), prompt_options=options)
    found = json.loads(writer(made, "vllm").rest(written(Token(0, 5, " mill")).choices[0]))
    assert [message["content"] for message in found["messages"]] == ["Be brief.", "hi", "The mill"]


def test_a_prompt_grows_by_what_is_written() -> None:
    progress = written(Token(0, 7, " upon"))
    assert json.loads(writer(completion()).rest(progress.choices[0]))["prompt"] == "once upon"
    made = completion((1, 2))
    assert writer(made).can_continue(progress)
    assert json.loads(writer(made).rest(progress.choices[0]))["prompt"] == [1, 2, 7]


@pytest.mark.parametrize(
    ("made", "progress"),
    [
        (request(tools=Tools((TOOL,))), written(Token(0, -1, "x"))),
        (
            request(params=SamplingParams(structured_outputs=Structured(json_object=True))),
            written(Token(0, -1, "{")),
        ),
        (request(), written(Token(0, -1, "", reasoning="hm"))),
        (request(params=SamplingParams(n=2)), written(Token(0, -1, "x"), n=2)),
        (completion((1, 2)), written(Token(0, -1, "x"))),
    ],
    ids=["tools", "constraint", "reasoning", "choices", "unknown ids"],
)
def test_other_answers_start_over(made: Request, progress: Progress) -> None:
    assert not writer(made, "vllm").can_continue(progress)


def test_an_unknown_server_is_not_asked_to_continue_a_chat() -> None:
    progress = written(Token(0, -1, "x"))
    assert not writer(request(), "other").can_continue(progress)
    assert writer(completion(), "other").can_continue(progress)
    assert msgspec.json.decode(writer(request()).whole())["stream"] is True
