"""What gRPC's messages say is what HTTP's bodies say, and is refused for the same reasons."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.read import parse, submission
from producer_api.schemas.jobs import JobSubmission
from shared.errors import HeadraceError, InvalidRequest, MalformedBody
from shared.schemas.validation import InvalidFields, validate

ROOT = Path(__file__).parents[2]
NOT_HERE = {"response_format"}  # structured_outputs says all of it
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}}'
USER = pb.Message(role="user", content="hi")
HI = {"messages": [{"role": "user", "content": "hi"}]}


def function(**fields: Any) -> pb.Tool:
    return pb.Tool(function=pb.FunctionDefinition(name="f", **fields))


SAME = [
    ({"messages": [USER]}, HI),
    ({"prompt": ""}, {"prompt": ""}),
    ({"prompt": "a", "priority": "batch", "deadline": 9.5}, {"prompt": "a", "priority": "batch", "deadline": 9.5}),
    ({"prompt_ids": pb.TokenIds(ids=[1, 2])}, {"prompt": [1, 2]}),
    (
        {
            "messages": [USER],
            "max_tokens": 0,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.25,
            "presence_penalty": -1,
            "frequency_penalty": 1,
            "repetition_penalty": 1.5,
            "stop": ["a", "b"],
            "seed": -(2**62),
            "n": 2,
            "ignore_eos": True,
            "logit_bias": {5: -1.5},
            "logprobs": 0,
            "timeout": 3,
            "user": "u",
        },
        {
            **HI,
            "max_tokens": 0,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.25,
            "presence_penalty": -1,
            "frequency_penalty": 1,
            "repetition_penalty": 1.5,
            "stop": ["a", "b"],
            "seed": -(2**62),
            "n": 2,
            "ignore_eos": True,
            "logit_bias": {"5": -1.5},
            "logprobs": 0,
            "timeout": 3,
            "user": "u",
        },
    ),
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
def test_a_message_says_what_a_body_says(fields: dict[str, Any], body: dict[str, Any]) -> None:
    """Given each field, Expect what HTTP's validator makes of the same body, and so the same idempotency key."""
    sent = pb.JobRequest(model="m", **fields).SerializeToString()
    read = submission(parse(sent, pb.JobRequest))
    same = validate(msgspec.json.encode({"model": "m", **body}), JobSubmission)

    assert read == same
    assert read.model_dump_json() == same.model_dump_json()


def test_every_field_is_there() -> None:
    """Given what a job may say by HTTP, Expect it of gRPC by the same name."""
    theirs = {field.name for field in pb.JobRequest.DESCRIPTOR.fields} - {"prompt_ids"}
    tried = {name for fields, _ in SAME for name in fields} - {"prompt_ids"}

    assert theirs == set(JobSubmission.model_fields) - NOT_HERE
    assert tried | {"model"} == theirs


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({}, ["model"]),
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
        submission(pb.JobRequest(**fields))
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
def test_what_contradicts_or_is_no_json_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        submission(pb.JobRequest(model="m", **fields)).to_request("t")
    assert caught.value.param == param


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(InvalidFields):
        submission(pb.JobRequest(model="m", prompt="a", tool_choice=pb.ToolChoice()))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"\xff", MalformedBody, "no headrace.v1.JobRequest"),
        (b"\x0a\x02\xff\xfe", MalformedBody, "no headrace.v1.JobRequest"),  # a text that is no UTF-8
        (b"\xa2\x06\x01x", InvalidRequest, "JobRequest has a field 100"),
        (b"\x12\x05\xa2\x06\x01xy"[:6], InvalidRequest, r"no headrace|messages\[0\] has a field 100"),
        (
            pb.JobRequest(messages=[USER]).SerializeToString() + b"\x12\x04\xa2\x06\x01x",
            InvalidRequest,
            r"messages\[1\] has",
        ),
    ],
)
def test_what_is_no_message_of_ours_is_refused(data: bytes, error: type[HeadraceError], words: str) -> None:
    with pytest.raises(error, match=words):
        parse(data, pb.JobRequest)


def test_the_generated_code_is_of_the_definition(tmp_path: Path) -> None:
    """Given the definition, Expect the compiler to make what is here."""
    source = tmp_path / "producer_api/rpc"
    source.mkdir(parents=True)
    shutil.copy(ROOT / "producer_api/rpc/inference.proto", source)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--pyi_out=."]
    subprocess.run([*command, "producer_api/rpc/inference.proto"], cwd=tmp_path, check=True)

    for name in ("inference_pb2.py", "inference_pb2.pyi"):
        assert filecmp.cmp(source / name, ROOT / "producer_api/rpc" / name, shallow=False), (
            f"run scripts/proto: {name}"
        )
