"""Every field of every body has a bound in its JSON Schema, and values beyond it are refused."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from producer_api.schemas.batches import BatchRequest
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.jobs import JobSubmission
from producer_api.schemas.text_classification import TextClassificationRequest
from producer_api.schemas.tgi import GenerateRequest, TgiLimits
from shared.errors import HeadraceError, InvalidRequest
from shared.kafka.message import KafkaRequest
from shared.models.names import MAX_MODEL_NAME_CHARS
from shared.protocol import Request
from shared.schemas.base import Body
from shared.schemas.encoder_fields import EncoderFields
from shared.schemas.native.tokenize import DetokenizeRequest, TokenizeRequest
from shared.schemas.openai.chat import UNSUPPORTED, ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.openai.responses import UNSUPPORTED as RESPONSES_UNSUPPORTED
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.openapi_bounds import BOUNDING
from shared.schemas.parsing import validate
from shared.schemas.vllm.classify import ClassifyRequest
from shared.schemas.vllm.pooling import PoolingRequest
from shared.schemas.vllm.scoring import DOCUMENTS, QUERIES, RerankRequest, ScoreRequest
from shared.validation.request_limits import Limits, check_together
from shared.validation.request_parameters import MAX_USER_CHARS

# without a bound: limited by the setting max_timeout; only neutral values accepted; ignored
EXCEPTIONS = {
    *("timeout", "deadline", "chat_template", "logprobs[]", "annotations[]"),
    *UNSUPPORTED,
    *RESPONSES_UNSUPPORTED,
}
UNBOUNDED = ("accepted, without effect", "not supported: refused unless empty or neutral")
LIMITS = Limits()

MODEL = {"model": "m"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = [
    {"role": "user", "content": "x", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "x"}, "x"]},
    {"role": "assistant", "tool_calls": [CALL], "annotations": [], "refusal": "x", "reasoning_content": "x"},
    {"role": "tool", "content": "x", "tool_call_id": "c"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}], "reasoning": "x"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}], "function_call": CALL["function"]},
]
SCHEMA = {"type": "object", "properties": {}}
FUNCTION = {"name": "f", "description": "x", "parameters": SCHEMA}
TOOLS = {
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
}
NUMBERS = {"temperature": 1, "top_p": 0.5, "presence_penalty": 0, "frequency_penalty": 0}
SAMPLING = {
    **{
        **NUMBERS,
        "top_k": 1,
        "min_p": 0,
        "typical_p": 1,
        "watermark": True,
        "repetition_penalty": 1,
        "seed": 1,
        "n": 1,
        "max_tokens": 1,
    },
    **{"logit_bias": {"1": 1}, "stop": ["x"], "user": "u", "timeout": 1, "priority": 1},
}
LISTS = {"stop_token_ids": [1], "bad_words": ["x"], "allowed_token_ids": [1]}
VLLM = {**LISTS, "min_tokens": 1, "thinking_token_budget": 1, "prompt_logprobs": 1}
ENCODING = {"truncate_prompt_tokens": 1, "truncation_side": "left", "cache_salt": "x"}
TEMPLATE = {"chat_template_kwargs": {"k": 1}, "documents": [{"text": "x"}], "reasoning_effort": "low"}
ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
ONE_OF = {**TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "description": "x", "schema": SCHEMA}}
FORMATS = [
    {"response_format": FORMAT},
    *({"response_format": {"type": "json_object", name: SCHEMA}} for name in ("schema", "value")),
    {"response_format": {"type": "regex", "value": "x"}, "request_id": "x"},
    *({"structured_outputs": each} for each in ({"json": SCHEMA}, {"json": "{}"}, {"regex": "x"})),
    *({"structured_outputs": each} for each in ({"choice": ["x"]}, {"grammar": 'root ::= "x"'})),
    *({"guided_json": SCHEMA}, {"guided_json": "{}"}, {"guided_regex": "x"}),
    *({"guided_choice": ["x"]}, {"guided_grammar": 'root ::= "x"'}),
]
UNUSED = {
    **{"safety_identifier": "x", "prompt_cache_key": "x", "metadata": {"k": "v"}},
}
JOB = {**MODEL, **SAMPLING, **VLLM, **ENCODING, **TEMPLATE, "logprobs": 1}
PART = {"type": "input_text", "text": "x", "logprobs": [1], "annotations": [{}]}
INPUT = [
    {"role": "user", "content": "x", "id": "i", "phase": "x"},
    {"role": "user", "content": [PART, {"type": "refusal", "refusal": "x"}]},
    {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "id": "i", "call_id": "c", "output": "x", "name": "f"},
    {"type": "function_call", "call_id": "d", "name": "f", "arguments": "{}"},
    {
        "type": "function_call_output",
        "call_id": "d",
        "output": [PART, {"type": "refusal", "refusal": "x"}],
    },
    {"type": "custom_tool_call", "id": "i", "call_id": "e", "name": "f", "input": "x"},
    {"type": "custom_tool_call_output", "id": "i", "call_id": "e", "name": "f", "output": [PART]},
    {
        **{"type": "reasoning", "id": "i", "encrypted_content": "x"},
        **{name: [{"type": "reasoning_text", "text": "x"}] for name in ("summary", "content")},
    },
]
RESPONSE = {
    **{**MODEL, "instructions": "x", "previous_response_id": "x", "max_output_tokens": 1, "temperature": 1},
    **{"top_p": 1, "top_logprobs": 1, "include": ["message.output_text.logprobs"], "max_tool_calls": 1},
    **{"user": "u", "seed": 1, "timeout": 1, "priority": 1, **UNUSED},
    **{"top_k": 1, "min_tokens": 1, "thinking_token_budget": 1},
}
GRAMMAR = {"type": "grammar", "syntax": "regex", "definition": "x"}
CUSTOM = {"type": "custom", "name": "c", "description": "x", "format": GRAMMAR}
AGENT = {
    "tools": [CUSTOM, {"type": "mcp"}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "c"}]},
    "reasoning": {"effort": "low", "context": "x", "mode": "x"},
    "service_tier": "x",
    "prompt_cache_retention": "x",
    "prompt_cache_options": {},
    "context_management": [{}],
}
FLAT = {"type": "function", "name": "f", "description": "x", "parameters": SCHEMA}
HELD = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "description": "x"}}
PROMPTS = ("x", ["x"], [1], [[1]])
ENCODER = {"truncate_prompt_tokens": 1, "truncation_side": "left", "timeout": 1, "priority": 1, "request_id": "x"}
PAIR = {"max_tokens_per_query": 1, "max_tokens_per_doc": 1}
TGI = {
    **{"frequency_penalty": 1, "max_new_tokens": 1, "repetition_penalty": 1, "temperature": 1, "top_k": 1},
    **{"top_n_tokens": 1, "top_p": 0.5, "truncate": 1, "typical_p": 0.5, "watermark": True},
}
TGI_GRAMMARS = [
    *({"type": "json", "value": each} for each in (SCHEMA, "{}")),
    *({"type": "regex", "value": "x"}, {"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}),
]

GOOD: dict[type[Body], list[dict[str, Any]]] = {
    ChatRequest: [
        {**MODEL, **SAMPLING, **UNUSED, **TOOLS, "messages": MESSAGES, "logprobs": True, "top_logprobs": 1},
        {**MODEL, "messages": MESSAGES, "max_completion_tokens": 1, "stop": "x", "prompt_cache_retention": "x"},
        {**MODEL, "messages": MESSAGES, **VLLM, "max_tokens": 1, **ENCODING, **TEMPLATE},
        {**MODEL, "messages": MESSAGES, **ONE_OF, "service_tier": "flex"},
        *({**MODEL, "messages": MESSAGES, **each} for each in FORMATS),
    ],
    CompletionRequest: [
        *({**MODEL, **SAMPLING, "logprobs": 1, "best_of": 1, "prompt": prompt} for prompt in PROMPTS),
        *({**MODEL, "prompt": "x", "stop": "x", **each} for each in FORMATS),
        {**MODEL, "prompt": "x", **VLLM, **ENCODING, "suffix": "x"},
    ],
    ResponseRequest: [
        {**RESPONSE, "input": INPUT, "tools": [FLAT], "tool_choice": {"type": "function", "name": "f"}},
        {**RESPONSE, "input": "x", "text": HELD, **AGENT},
        {**MODEL, "input": "x", "tools": [CUSTOM], "tool_choice": {"type": "custom", "name": "c"}},
    ],
    EmbeddingRequest: [
        {**MODEL, **ENCODER, "input": prompt, "dimensions": 1, "embed_dtype": "float16"} for prompt in PROMPTS
    ],
    ClassifyRequest: [
        *({**MODEL, **ENCODER, "input": prompt} for prompt in PROMPTS),
        {**MODEL, "messages": MESSAGES, "chat_template_kwargs": {"k": 1}},
    ],
    PoolingRequest: [
        *({**MODEL, **ENCODER, "input": prompt, "task": "embed"} for prompt in PROMPTS),
        {**MODEL, "messages": MESSAGES, "chat_template_kwargs": {"k": 1}},
    ],
    ScoreRequest: [
        {**MODEL, **ENCODER, **PAIR, queries: given, documents: given}
        for queries, documents in itertools.product(QUERIES, DOCUMENTS)
        for given in ("x", ["x"])
    ],
    RerankRequest: [
        {**MODEL, **ENCODER, **PAIR, "query": "x", "documents": ["x"], "top_n": 1},
        {**MODEL, "query": "x", "documents": [{"text": "x"}]},
    ],
    TokenizeRequest: [
        {**MODEL, "prompt": "x"},
        {**MODEL, **TEMPLATE, **TOOLS, "messages": MESSAGES},
        {**MODEL, **ONE_OF, "messages": MESSAGES},
    ],
    DetokenizeRequest: [{**MODEL, "tokens": [1]}],
    GenerateRequest: [
        {**MODEL, "inputs": "x", "request_id": "x", "parameters": {**TGI, "seed": 1, "stop": "x"}},
        {**MODEL, "inputs": "x", "parameters": {**TGI, "best_of": 1, "stop": ["x"]}},
        *({**MODEL, "inputs": "x", "parameters": {"grammar": each}} for each in TGI_GRAMMARS),
    ],
    TextClassificationRequest: [
        {**MODEL, "inputs": prompt, "request_id": "x", "parameters": {"top_k": 1}} for prompt in PROMPTS
    ],
    FeatureExtractionRequest: [
        {**MODEL, "inputs": prompt, "dimensions": 1, "request_id": "x"} for prompt in PROMPTS
    ],
    JobSubmission: [
        {**JOB, **TOOLS, "messages": MESSAGES, "webhook": {"url": "https://a.test", "events": ["job.failed"]}},
        {**MODEL, "prompt": "x", "stop": "x", "deadline": 1, "suffix": "x"},
        {**MODEL, "messages": MESSAGES, **ONE_OF},
        {**MODEL, "prompt": [1]},
        *({**MODEL, "prompt": "x", **each} for each in FORMATS),
    ],
    KafkaRequest: [
        {**JOB, **TOOLS, "messages": MESSAGES, "tenant": "t"},
        {**MODEL, "prompt": "x", "stop": "x", "deadline": 1, "suffix": "x"},
        {**MODEL, "messages": MESSAGES, **ONE_OF},
        {**MODEL, "prompt": [1]},
        *({**MODEL, "prompt": "x", **each} for each in FORMATS),
    ],
    BatchRequest: [
        {
            **{"input_file_id": "f", "endpoint": "/v1/completions", "completion_window": "24h"},
            **{"metadata": {"k": "v"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}},
            "webhook": {"url": "https://a.test", "events": ["batch.failed"]},
        }
    ],
}
TYPES = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict}

Step = str | None  # a property; None: every item, or every value
Path = tuple[Step, ...]


@dataclass(frozen=True)
class Leaf:
    """A place in a body for values of one type."""

    path: Path
    kind: str
    schema: dict[str, Any]

    @property
    def bounded(self) -> bool:
        """Return whether a number has both bounds, or another value a length or a pattern."""
        if self.kind in ("integer", "number"):
            return len(BOUNDING & self.schema.keys()) == 2
        return bool(BOUNDING & self.schema.keys())

    def __str__(self) -> str:
        return ".".join("[]" if step is None else step for step in self.path).replace(".[]", "[]") + f":{self.kind}"


def leaves(node: dict[str, Any], definitions: dict[str, Any], path: Path = ()) -> Iterator[Leaf]:
    """Yield the places of a JSON Schema, without booleans, nulls and constants."""
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[1]]
    branches = [each for kind in ("anyOf", "oneOf", "allOf") for each in node.get(kind, ())]
    for each in branches:
        yield from leaves(each, definitions, path)
    if "enum" in node or "const" in node or branches:
        return
    kind = node.get("type", "any")
    fixed = kind == "object" and "properties" in node  # unknown fields are ignored
    if kind not in ("null", "boolean") and not fixed and node.get("description") not in UNBOUNDED:
        yield Leaf(path, kind, node)
    if node.get("maxItems") != 0 and isinstance(node.get("items"), dict):
        yield from leaves(node["items"], definitions, (*path, None))
    if isinstance(node.get("additionalProperties"), dict):
        yield from leaves(node["additionalProperties"], definitions, (*path, None))
    for name, each in node.get("properties", {}).items():
        yield from leaves(each, definitions, (*path, name))


def leaves_of(body: type[Body]) -> list[Leaf]:
    schema = body.model_json_schema()
    return list(leaves(schema, schema.get("$defs", {})))


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_every_field_has_a_bound(body: type[Body]) -> None:
    open_ended = {str(leaf).split(":")[0].split(".")[-1] for leaf in leaves_of(body) if not leaf.bounded}
    assert open_ended <= EXCEPTIONS


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_names_have_the_bounds_that_are_enforced(body: type[Body]) -> None:
    places = {str(leaf): leaf.schema.get("maxLength") for leaf in leaves_of(body)}
    found = {name: places.get(f"{name}:string") for name in ("model", "user")}
    generating = body in (ChatRequest, CompletionRequest, ResponseRequest, JobSubmission, KafkaRequest)
    assert found["model"] == (None if body is BatchRequest else MAX_MODEL_NAME_CHARS)
    assert found["user"] == (MAX_USER_CHARS if generating else None)


def refusal(body: type[Body], fields: dict[str, Any]) -> HeadraceError | None:
    """Return the error of a body in the checks that precede those on the server's state."""
    try:
        check_together([seeded(each, fields.get("seed", 0)) for each in drafts(body, fields)], LIMITS)
    except HeadraceError as error:
        return error
    return None


def drafts(body: type[Body], fields: dict[str, Any]) -> list[Request]:
    parsed = validate(json.dumps(fields).encode(), body)
    if isinstance(parsed, BatchRequest):
        return []
    if isinstance(parsed, ChatRequest):
        return [parsed.to_request("t")]
    if isinstance(parsed, CompletionRequest):
        return parsed.to_requests("t")
    if isinstance(parsed, ResponseRequest):
        return [parsed.to_request("t", parsed.to_items())]
    if isinstance(parsed, EncoderFields | FeatureExtractionRequest | TextClassificationRequest):
        return parsed.to_requests("t")
    if isinstance(parsed, GenerateRequest):
        return [parsed.to_request("t", TgiLimits(best_of=8, stop_sequences=16, input_length=None), stream=False)]
    return [parsed.to_request("t")]  # type: ignore[attr-defined]


def seeded(draft: Request, seed: int) -> Request:
    """Return the draft with what admission adds."""
    return msgspec.structs.replace(draft, id="r", params=msgspec.structs.replace(draft.params, seed=seed))


def places(value: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the (container, key) of every value at `path`."""
    step, rest = path[0], path[1:]
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value) if step is None else [step] if step in value else []
    elif isinstance(value, list) and step is None:
        keys = list(range(len(value)))
    for key in keys:
        if rest:
            yield from places(value[key], rest)
        else:
            yield value, key


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether `value` and its items have the types of a leaf's schema."""
    kind, items = schema.get("type"), schema.get("items", {})
    if kind not in TYPES or not isinstance(value, TYPES[kind]) or isinstance(value, bool):
        return False
    return kind != "array" or not value or items.get("type") not in TYPES or fits(value[0], items)


def beyond(leaf: Leaf, value: Any) -> Iterator[Any]:
    """Yield values beyond each bound of a leaf with the value `value`."""
    bounds = leaf.schema
    if "pattern" in bounds:
        yield "\x00"
    if "maxLength" in bounds:
        yield "x" * (bounds["maxLength"] + 1)
    if "maxItems" in bounds:
        yield (value or [1])[:1] * (bounds["maxItems"] + 1)
    if "maxProperties" in bounds:
        inner = next(iter(value.values()), 1)
        yield {str(number): inner for number in range(bounds["maxProperties"] + 1)}
    for name, step in (("maximum", 1), ("minimum", -1), ("exclusiveMaximum", 0), ("exclusiveMinimum", 0)):
        if name in bounds:
            yield bounds[name] + step


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_values_beyond_a_bound_are_refused(body: type[Body]) -> None:
    """Given the first valid body with a value, when it goes beyond its bound, the body is refused."""
    for good in GOOD[body]:
        assert refusal(body, good) is None, good
    tried, wanted = set(), {str(leaf) for leaf in leaves_of(body) if leaf.bounded}
    for leaf in leaves_of(body):
        for good in GOOD[body] if leaf.bounded else ():
            if str(leaf) in tried:
                break
            changed = copy.deepcopy(good)
            for container, key in places(changed, leaf.path):
                before = container[key]
                if not fits(before, leaf.schema):
                    continue
                for over in beyond(leaf, before):
                    container[key] = over
                    assert isinstance(refusal(body, changed), InvalidRequest), (str(leaf), str(over)[:60])
                    tried.add(str(leaf))
                container[key] = before
    assert tried == wanted
