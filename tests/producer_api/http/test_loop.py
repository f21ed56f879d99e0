"""No body, however hostile, blocks the event loop."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.loop_watchdog import MAX_HELD_S, watching_loop
from tests.support.scripted_worker import ScriptedWorker

ONE_OF = {"oneOf": [{"type": "object", "properties": {"a": {"const": i}}, "required": ["a"]} for i in range(900)]}
MIXED = {
    "oneOf": [
        *({"required": ["a"], "properties": {"a": {"const": i}}} for i in range(600)),
        *({"required": ["b"], "properties": {"b": {"const": i}}} for i in range(600)),
    ]
}
ENUMS = {"oneOf": [{"enum": list(range(5000))}, {"enum": list(range(5000, 9000))}]}
EMPTY = {"anyOf": [{}] * 15_000}
FULL = {"anyOf": [{}] * 4_900}
HUGE = {"a": [{}] * 300_000}
NOTHING = {"anyOf": []}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}], **fields}


def held_to(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    }


def tools(schema: Any, count: int) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": schema}}
    return {
        "tools": [
            {"type": "function", "function": {"name": f"f{i}", "parameters": parameters, "strict": True}}
            for i in range(count)
        ]
    }


CHAT, TEXT, JOBS = "/v1/chat/completions", "/v1/completions", "/v1/jobs"
EMBED, RESPONSES = "/v1/embeddings", "/v1/responses"
# by name: where they go, and what they are. What is within bounds is refused for its model, after all else.
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "branches": (CHAT, chat(**held_to(ONE_OF))),
    "branches of two kinds": (CHAT, chat(**held_to(MIXED))),
    "long enums": (CHAT, chat(**held_to(ENUMS))),
    "too many subschemas": (CHAT, chat(**held_to(EMPTY))),
    "branches of four tools": (CHAT, chat(**tools(ONE_OF, 4))),
    "subschemas of five tools": (CHAT, chat(**tools({"anyOf": [{}] * 9_000}, 5))),
    "a huge schema": (CHAT, chat(**held_to(HUGE))),
    "unknown fields": (CHAT, chat(**{str(i): 0 for i in range(100_000)})),
    "wrong messages": (CHAT, {"messages": [1] * 300_000}),
    "messages": (CHAT, {"messages": chat()["messages"] * 30_000}),
    "wrong parts": (CHAT, {"messages": [{"role": "user", "content": [[]] * 1000}] * 1000}),
    "parts": (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}] * 999}] * 90)),
    "biases": (CHAT, chat(logit_bias={str(i): 0 for i in range(100_000)})),
    "wrong biases": (CHAT, chat(logit_bias={str(i): "a" for i in range(100_000)})),
    "metadata": (CHAT, chat(metadata={str(i): "a" for i in range(100_000)})),
    "unsupported": (CHAT, chat(functions=[{}] * 300_000)),
    "prompts of ids": (TEXT, {"prompt": [[1]] * 200_000}),
    "a long prompt in a list": (TEXT, {"prompt": [[1] * 1_000_000]}),
    "long prompts of ids": (TEXT, {"prompt": [[1] * 15_000] * 64}),
    "prompts of texts": (TEXT, {"prompt": ["a"] * 300_000}),
    "ids": (TEXT, {"prompt": [1] * 1_000_000}),
    "one schema for 64 prompts": (TEXT, {"prompt": ["a"] * 64, **held_to(FULL)}),
    "stop strings": (TEXT, {"prompt": "a", "stop": ["a"] * 300_000}),
    "inputs of ids": (EMBED, {"input": [[1]] * 200_000}),
    "a long input in a list": (EMBED, {"input": [[1] * 1_000_000]}),
    "inputs of texts": (EMBED, {"input": ["a"] * 300_000}),
    "long inputs of ids": (EMBED, {"input": [[1] * 488] * 2048}),
    "ids of a job": (JOBS, {"prompt": [1] * 1_000_000}),
    "lists in a job": (JOBS, {"prompt": [[1]] * 200_000}),
    "branches of a job": (JOBS, {"prompt": "a", "structured_outputs": {"json": ONE_OF}}),
    "choices": (JOBS, {"prompt": "a", "structured_outputs": {"choice": ["a"] * 300_000}}),
    "tokens": ("/detokenize", {"tokens": [-1] * 1_000_000}),
    "messages to tokenize": ("/tokenize", {"messages": chat()["messages"] * 30_000}),
    "items": (RESPONSES, {"input": chat()["messages"] * 30_000}),
    "parts of items": (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 999}] * 80},
    ),
    "log-probabilities": (
        RESPONSES,
        {"input": [{"content": [{"type": "output_text", "text": "x", "logprobs": [1] * 130_000}]}] * 8},
    ),
    "a huge schema of a response": (
        RESPONSES,
        {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": HUGE}]},
    ),
    "a batch": ("/v1/batches", {"metadata": {str(i): "a" for i in range(100_000)}}),
}


@pytest.fixture
def queue() -> str:
    return "redis"


@pytest.mark.slow
async def test_no_body_blocks_the_event_loop(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post(CHAT, json=chat(model="absent"))  # what is made once is not counted
        for name, (path, body) in BODIES.items():
            data = json.dumps({"model": "absent", **body}, separators=(",", ":")).encode()
            assert len(data) <= settings.max_body_bytes, name
            headers = {"content-type": "application/json", "idempotency-key": name.replace(" ", "-")}
            with watching_loop() as held:
                answer = await http.post(path, content=data, headers=headers)
            assert 400 <= answer.status_code < 500, (name, answer.text[:200])
            assert held.longest < MAX_HELD_S, (name, held)
