"""Bodies with each part replaced by hostile values: they give a request within the limits, or a typed error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from producer_api.schemas.batches import BatchRequest
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.text_classification import TextClassificationRequest
from producer_api.schemas.tgi import GenerateRequest, TgiLimits
from shared.errors import HeadraceError
from shared.protocol import Request, SamplingParams
from shared.schemas.base import Body
from shared.schemas.native.jobs import JobRequest
from shared.schemas.native.tokenize import DetokenizeRequest, TokenizeRequest
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import InvalidFields, validate
from shared.schemas.vllm.classify import ClassifyRequest
from shared.schemas.vllm.pooling import PoolingRequest
from shared.schemas.vllm.scoring import RerankRequest, ScoreRequest
from shared.validation.request_limits import Limits, check_request, check_together

Place = tuple[int | str, ...]

HOSTILE: list[Any] = [
    *(None, True, 0, -1, 0.5, -0.0, 1e308, -1e308, 10**400, 2**31, 2**64, float("nan"), float("inf")),
    *(5e-324, -5e-324, 1e-300, 2.0**-149, 1 - 2**-53),
    *("", "x", "\0", "\ud800", "x" * 70_000, "{}", "[", "null", "auto"),
    *("[" * 1200, '{"a":' * 3000, '{"a":"\\ud800"}'),
    *([], [[]], ["x"], [None], [1, "x"]),
    *({}, {"": ""}, {"a": {"b": [{}]}}, {"type": "object"}, {"type": "text"}, {"type": "function"}),
    *({"anyOf": []}, {"oneOf": []}, {"allOf": []}, {"enum": []}, {"type": []}),
    *({"minimum": 1e-300, "maximum": 1e-299}, {"oneOf": [{"const": i} for i in range(100)]}, {"anyOf": [{}] * 200}),
    {"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}},
]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "n"},
    {"role": "assistant", "content": "a", "tool_calls": [CALL]},
    {"role": "tool", "content": "r", "tool_call_id": "c"},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 1},
        "d": {"enum": [1, "x"]},
        "b": {"type": "string", "pattern": "a+"},
        "c": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"const": 1}]}, "minItems": 1},
    },
    "required": ["a", "b", "c", "d"],
    "additionalProperties": False,
}
SAMPLING = {
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "stop": ["a"],
    "seed": 1,
    "n": 1,
    "logit_bias": {"5": 1},
    "timeout": 5,
    "user": "u",
}
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": False}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
}
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
ENCODER = {"truncate_prompt_tokens": 5, "truncation_side": "left", "priority": 1, "timeout": 5}
TGI = {
    **{"adapter_id": None, "best_of": 1, "decoder_input_details": True, "details": True, "do_sample": True},
    **{"frequency_penalty": 1, "max_new_tokens": 5, "repetition_penalty": 1.1, "return_full_text": True},
    **{"stop": ["a"], "temperature": 0.5, "top_k": 3, "top_n_tokens": 2, "top_p": 0.5, "truncate": 5},
    **{"typical_p": 0.5, "watermark": True},
}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
]
FLAT_TOOLS = {
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
    "tool_choice": {"type": "function", "name": "f"},
}
FLAT_FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA}
BODIES: list[tuple[type[Body], dict[str, Any]]] = [
    (JobRequest, {"messages": CHAT, **SAMPLING, **TOOLS, "max_tokens": 5, "logprobs": 1, "priority": "batch"}),
    (JobRequest, {"prompt": [1, 2], "structured_outputs": {"choice": ["a", "b"]}}),
    (JobRequest, {"prompt": "x", "structured_outputs": {"json": SCHEMA}}),
    (ChatRequest, {"messages": CHAT, **STREAM, "response_format": FORMAT, "logprobs": True, "top_logprobs": 2}),
    (
        ChatRequest,
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": ALLOWED, "messages": CHAT[:1]},
    ),
    (
        ChatRequest,
        {
            **{"messages": CHAT, "max_completion_tokens": 5, "metadata": {"a": "b"}, "store": False},
            "response_format": {"type": "json_object"},
        },
    ),
    (CompletionRequest, {"prompt": ["a", "b"], **SAMPLING, **STREAM, "echo": False, "logprobs": 1, "best_of": 1}),
    (EmbeddingRequest, {"input": ["a", "b"], "encoding_format": "float", "dimensions": 5, **ENCODER}),
    (ClassifyRequest, {"input": ["a", "b"], "use_activation": False, "padding": "do_not_pad", **ENCODER}),
    (ClassifyRequest, {"messages": CHAT, "add_generation_prompt": True, "chat_template_kwargs": {"k": 1}}),
    (PoolingRequest, {"input": [[1, 2]], "task": "token_embed", "embed_dtype": "float16", "endianness": "big"}),
    (ScoreRequest, {"queries": ["a", "b"], "documents": ["c", "d"], "max_tokens_per_doc": 5, **ENCODER}),
    (ScoreRequest, {"text_1": "a", "text_2": "b", "use_activation": True, "max_tokens_per_query": 5}),
    (RerankRequest, {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}),
    (TokenizeRequest, {"messages": CHAT, "add_special_tokens": True, "add_generation_prompt": True}),
    (DetokenizeRequest, {"tokens": [1]}),
    (GenerateRequest, {"inputs": "x", "stream": False, "parameters": {**TGI, "seed": 1}}),
    (GenerateRequest, {"inputs": "x", "parameters": {"grammar": {"type": "json", "value": SCHEMA}}}),
    (FeatureExtractionRequest, {"inputs": ["a", "b"], "normalize": True, "dimensions": 5}),
    (TextClassificationRequest, {"inputs": "a", "parameters": {"function_to_apply": "none", "top_k": 1}}),
    (
        ResponseRequest,
        {"input": ITEMS, **FLAT_TOOLS, "text": {"format": FLAT_FORMAT}, "include": [], "store": True},
    ),
    (
        BatchRequest,
        {"input_file_id": "f", "endpoint": "/v1/jobs", "completion_window": "24h", "metadata": {"k": "v"}},
    ),
]
# names of validators and of branches, and pydantic's own words
INTERNALS = re.compile(
    r"(literal|list|dict|tuple|nullable)\[|function-|tagged-union|_kind|_branch|Input should|\[key\]"
)
DRAFTS: dict[type[Body], Callable[[Any], list[Request]]] = {
    ChatRequest: lambda body: [body.to_request("t")],
    CompletionRequest: lambda body: body.to_requests("t"),
    **dict.fromkeys(
        (EmbeddingRequest, ClassifyRequest, PoolingRequest, ScoreRequest, RerankRequest),
        lambda body: body.to_requests("t"),
    ),
    **dict.fromkeys((FeatureExtractionRequest, TextClassificationRequest), lambda body: body.to_requests("t")),
    GenerateRequest: lambda body: [body.to_request("t", TgiLimits(2, 4, 100), stream=False)],
    ResponseRequest: lambda body: [],
    BatchRequest: lambda body: [],
}


def places(node: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*at, key))


def put(body: Any, at: Place, value: Any) -> Any:
    if not at:
        return value
    changed = body.copy()
    changed[at[0]] = put(body[at[0]], at[1:], value)
    return changed


def seeded_of(draft: Request) -> SamplingParams:
    return msgspec.structs.replace(draft.params, seed=1)


def admit(schema: type[Body], data: bytes) -> None:
    """Run the checks on a body that precede those on the server's state. Raise HeadraceError."""
    body = validate(data, schema)
    body.model_dump_json()
    drafts = DRAFTS.get(schema, lambda each: [each.to_request("t")])(body)
    seeded = [msgspec.structs.replace(each, id="req_x", params=seeded_of(each)) for each in drafts]
    check_together(seeded, Limits())
    for request in seeded:
        check_request(request, Limits())
        msgspec.json.encode(request)


@pytest.mark.parametrize(("schema", "fields"), BODIES, ids=[schema.__name__ for schema, _ in BODIES])
def test_hostile_values_give_typed_errors_without_internals(schema: type[Body], fields: dict[str, Any]) -> None:
    body = {"model": "m", **fields}
    admit(schema, json.dumps(body).encode())
    for at in places(body):
        for value in HOSTILE:
            try:
                admit(schema, json.dumps(put(body, at, value)).encode())
            except HeadraceError as error:
                assert error.status < 500, (at, value)
                texts = error.fields if isinstance(error, InvalidFields) else [(error.param or "", error.message)]
                wrong = [each for pair in texts for each in pair if INTERNALS.search(each)]
                assert not wrong, (at, value, wrong)
