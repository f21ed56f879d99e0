"""gRPC messages: equivalent to HTTP bodies, and refused for the same reasons."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.requests import parse, to_submission
from producer_api.schemas.jobs import JobSubmission
from shared.errors import HeadraceError, InvalidRequest, MalformedBody
from shared.schemas.neutral_fields import NeutralFields
from shared.schemas.parsing import InvalidFields, validate
from shared.schemas.structured import GUIDED
from shared.validation.request_limits import Limits, check_request

ROOT = Path(__file__).parents[3]
NOT_HERE = {
    *("response_format", *(f"guided_{kind}" for kind in GUIDED)),  # structured_outputs replaces them
    "chat_template",  # HTTP refuses it by name
}
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}}'
USER = pb.Message(role="user", content="hi")
HI = {"messages": [{"role": "user", "content": "hi"}]}


def function(**fields: Any) -> pb.Tool:
    return pb.Tool(function=pb.FunctionDefinition(name="f", **fields))


SAMPLING = {
    "max_tokens": 0,
    "temperature": 0,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.25,
    "typical_p": 0.5,
    "watermark": True,
    "presence_penalty": -1,
    "frequency_penalty": 1,
    "repetition_penalty": 1.5,
    "stop": ["a", "b"],
    "seed": -(2**62),
    "n": 2,
    "ignore_eos": True,
    "logprobs": 0,
    "timeout": 3,
    "user": "u",
    "min_tokens": 2,
    "stop_token_ids": [1, 2],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "bad_words": ["a b"],
    "allowed_token_ids": [3],
    "thinking_token_budget": 0,
    "include_reasoning": False,
    "prompt_logprobs": 0,
    "return_token_ids": True,
    "add_special_tokens": True,
    "truncate_prompt_tokens": -1,
    "truncation_side": "right",
    "cache_salt": "x",
}
TEMPLATE = {"add_generation_prompt": False, "continue_final_message": True, "reasoning_effort": "low"}
VARIABLES, DOCUMENTS = {"enable_thinking": False}, [{"text": "x"}]
SAME = [
    ({"messages": [USER]}, HI),
    (
        {
            "messages": [USER],
            **TEMPLATE,
            "chat_template_kwargs": json.dumps(VARIABLES),
            "documents": json.dumps(DOCUMENTS),
        },
        {**HI, **TEMPLATE, "chat_template_kwargs": VARIABLES, "documents": DOCUMENTS},
    ),
    ({"prompt": "a", "suffix": "b"}, {"prompt": "a", "suffix": "b"}),
    ({"prompt": ""}, {"prompt": ""}),
    ({"prompt": "a", "priority": "batch", "deadline": 9.5}, {"prompt": "a", "priority": "batch", "deadline": 9.5}),
    ({"prompt_ids": pb.TokenIds(ids=[1, 2])}, {"prompt": [1, 2]}),
    ({"messages": [USER], **SAMPLING, "logit_bias": {5: -1.5}}, {**HI, **SAMPLING, "logit_bias": {"5": -1.5}}),
    (
        {
            "messages": [USER],
            "tools": [function(description="d", parameters=SCHEMA, strict=True)],
            "tool_choice": pb.ToolChoice(function="f"),
            "parallel_tool_calls": False,
        },
        {
            **HI,
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "description": "d",
                        "parameters": msgspec.json.decode(SCHEMA),
                        "strict": True,
                    },
                }
            ],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
        },
    ),
    (
        {"messages": [USER], "tools": [function()], "tool_choice": pb.ToolChoice(mode="required")},
        {**HI, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    ),
    (
        {
            "messages": [
                pb.Message(
                    role="assistant",
                    tool_calls=[pb.ToolCall(id="c", function=pb.Function(name="f", arguments="{}"))],
                ),
                pb.Message(role="tool", content="r", tool_call_id="c", name="n"),
            ]
        },
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "r", "tool_call_id": "c", "name": "n"},
            ]
        },
    ),
    *(
        (
            {"messages": [USER], "structured_outputs": pb.StructuredOutputs(**given)},
            {**HI, "structured_outputs": given},
        )
        for given in (
            {"json": SCHEMA},
            {"json_object": True},
            {"regex": "a"},
            {"choice": ["a"]},
            {"grammar": "root"},
        )
    ),
    (
        {"prompt": "a", "webhook": pb.Webhook(url="https://x.example", events=["job.failed"])},
        {"prompt": "a", "webhook": {"url": "https://x.example", "events": ["job.failed"]}},
    ),
]


@pytest.mark.parametrize(("fields", "body"), SAME, ids=range(len(SAME)))
def test_a_message_is_equivalent_to_its_http_body(fields: dict[str, Any], body: dict[str, Any]) -> None:
    """Each field gives the same request as over HTTP, and so the same idempotency key."""
    sent = pb.JobRequest(model="m", **fields).SerializeToString()
    read = to_submission(parse(sent, pb.JobRequest, strict_fields=True))
    same = validate(msgspec.json.encode({"model": "m", **body}), JobSubmission)

    assert read == same
    assert read.model_dump_json() == same.model_dump_json()


def test_every_field_of_a_job_has_a_grpc_field() -> None:
    theirs = {field.name for field in pb.JobRequest.DESCRIPTOR.fields} - {"prompt_ids"}
    tried = {name for fields, _ in SAME for name in fields} - {"prompt_ids"}

    assert theirs == set(JobSubmission.model_fields) - NOT_HERE - set(NeutralFields.model_fields)
    assert tried | {"model"} == theirs


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"model": "m", "messages": [pb.Message(content="hi")]}, ["messages[0].role"]),
        ({"model": "m", "messages": [USER, pb.Message(role="root", content="x")]}, ["messages[1].role"]),
        ({"model": "m", "temperature": float("nan"), "top_p": float("inf")}, ["temperature", "top_p"]),
        ({"model": "m", "prompt_ids": pb.TokenIds(ids=[-1])}, ["prompt"]),
        ({"model": "m", "priority": "now"}, ["priority"]),
        ({"model": "m", "tools": [function(), pb.Tool()]}, ["tools[1].function"]),
        ({"model": "m", "tools": [function(parameters="[1]")]}, ["tools[0].function.parameters"]),
        ({"model": "m", "webhook": pb.Webhook(url="https://x.example", events=["x"])}, ["webhook.events[0]"]),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], params: list[str]) -> None:
    with pytest.raises(InvalidFields) as caught:
        to_submission(pb.JobRequest(**fields))
    assert [param for param, _ in caught.value.fields] == params


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [function(), function(parameters="{")]}, "tools[1].function.parameters"),
        ({"tools": [function(parameters="[" * 100_000)]}, "tools[0].function.parameters"),
        ({"tools": [function(parameters='{"default": NaN}')]}, "tools[0].function.parameters"),
        ({"tool_choice": pb.ToolChoice(mode="required"), "prompt": "a"}, "tool_choice"),
    ],
)
def test_contradictions_and_invalid_json_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_submission(pb.JobRequest(model="m", **fields)).to_request("t")
    assert caught.value.param == param


def test_an_empty_tool_choice_is_refused() -> None:
    with pytest.raises(InvalidFields):
        to_submission(pb.JobRequest(model="m", prompt="a", tool_choice=pb.ToolChoice()))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"\xff", MalformedBody, "not a valid headrace.v1.JobRequest"),
        (b"\x0a\x02\xff\xfe", MalformedBody, "not a valid headrace.v1.JobRequest"),  # invalid UTF-8
        (b"\xa2\x06\x01x", InvalidRequest, "100 is the number of an unknown field"),
        (
            pb.JobRequest(messages=[USER]).SerializeToString() + b"\x12\x04\xa2\x06\x01x",
            InvalidRequest,
            r"messages\[1\].100 is the number",
        ),
    ],
)
def test_invalid_messages_are_refused(data: bytes, error: type[HeadraceError], words: str) -> None:
    with pytest.raises(error, match=words):
        parse(data, pb.JobRequest, strict_fields=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER] * 1025}, "messages"),
        ({"messages": [USER], "tools": [function()] * 513}, "tools"),
        ({"messages": [USER, pb.Message(tool_calls=[pb.ToolCall()] * 129)]}, "messages[1].tool_calls"),
    ],
)
def test_too_many_items_are_refused_before_parsing(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="at most") as caught:
        to_submission(pb.JobRequest(model="m", **fields))
    assert caught.value.param == param


WORDS = st.text(max_size=20) | st.sampled_from(
    ["user", "assistant", "tool", "batch", "auto", "{}", '{"type": 1}', "[[", "req_"]
)
VALUES = {
    FieldDescriptor.TYPE_STRING: WORDS,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
}


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Generate any message of a type."""

    def field(described: FieldDescriptor) -> st.SearchStrategy[Any]:
        kind = described.message_type
        if kind is not None and kind.GetOptions().map_entry:
            return st.dictionaries(VALUES[kind.fields[0].type], VALUES[kind.fields[1].type], max_size=3)
        value = VALUES[described.type] if kind is None else messages(kind)
        return st.lists(value, max_size=3) if described.is_repeated else value

    fields = st.fixed_dictionaries({}, optional={each.name: field(each) for each in descriptor.fields})
    return fields.map(lambda given: GetMessageClass(descriptor)(**given))


@given(message=messages(pb.JobRequest.DESCRIPTOR))
def test_any_message_is_a_request_or_gets_a_typed_error(message: Message) -> None:
    """Any message of the definition makes a valid request or raises a HeadraceError."""
    try:
        request = to_submission(parse(message.SerializeToString(), pb.JobRequest, strict_fields=True)).to_request(
            "t"
        )
        check_request(msgspec.structs.replace(request, id="req_x"), Limits())
    except HeadraceError as error:
        assert error.status < 500


@given(data=st.binary(max_size=200), known=st.sampled_from(SAME), at=st.integers(0, 300))
def test_any_bytes_are_a_message_or_get_a_typed_error(data: bytes, known: Any, at: int) -> None:
    """Random bytes, alone or inside a message, raise nothing but a HeadraceError."""
    sent = pb.JobRequest(model="m", **known[0]).SerializeToString()
    for each in (data, sent[:at] + data + sent[at:]):
        try:
            to_submission(parse(each, pb.JobRequest, strict_fields=False)).to_request("t")
        except HeadraceError as error:
            assert error.status < 500


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    source = tmp_path / "producer_api/rpc"
    source.mkdir(parents=True)
    definitions = [f"producer_api/rpc/{name}.proto" for name in ("inference", "prediction")]
    for definition in definitions:
        shutil.copy(ROOT / definition, source)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--pyi_out=."]
    subprocess.run([*command, *definitions], cwd=tmp_path, check=True)

    for name in ("inference_pb2.py", "inference_pb2.pyi", "prediction_pb2.py", "prediction_pb2.pyi"):
        assert filecmp.cmp(source / name, ROOT / "producer_api/rpc" / name, shallow=False), (
            f"run scripts/proto: {name}"
        )
