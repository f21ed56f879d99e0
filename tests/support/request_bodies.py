"""Valid bodies of requests, which have every field of their schemas between them."""

from __future__ import annotations

import itertools
from typing import Any

from producer_api.schemas.batches import BatchRequest
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.jobs import JobSubmission
from producer_api.schemas.text_classification import TextClassificationRequest
from producer_api.schemas.tgi import GenerateRequest
from shared.kafka.message import KafkaRequest
from shared.schemas.base import Body
from shared.schemas.native.tokenize import DetokenizeRequest, TokenizeRequest
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.vllm.classify import ClassifyRequest
from shared.schemas.vllm.pooling import PoolingRequest
from shared.schemas.vllm.scoring import DOCUMENTS, QUERIES, RerankRequest, ScoreRequest

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
