"""TGI's API and tokens: the limits of the context, and the routes that split texts and chats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.worker_harness import Harness
from workers.scripted_engine import ScriptedEngine


@pytest.fixture
async def served(
    client: httpx.AsyncClient, backend: Backend, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    async with Harness(backend, settings).worker(ScriptedEngine(max_model_len=64)):
        yield client


async def test_a_prompt_and_an_answer_beyond_the_context_are_refused(served: httpx.AsyncClient) -> None:
    async def refusal(inputs: str, **parameters: Any) -> str:
        answer = await served.post("/generate", json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == 422, answer.text
        return str(answer.json()["error"])

    total = "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 60 `inputs` tokens and 5 `max_new_tokens`"
    assert await refusal("x" * 60, max_new_tokens=5) == f"Input validation error: {total}"
    text = "`inputs` must have less than 63 tokens. Given: 64"
    assert await refusal("x" * 64) == f"Input validation error: {text}"
    truncated = {"max_new_tokens": 4, "truncate": 60, "details": True}
    answer = await served.post(
        "/generate", json={"inputs": "y" * 10 + "x" * 50 + "z" * 10, "parameters": truncated}
    )
    assert (answer.status_code, answer.headers["x-prompt-tokens"]) == (200, "60")


async def test_tokens_of_texts_and_chats_have_their_places(served: httpx.AsyncClient) -> None:
    found = (await served.post("/tokenize", json={"inputs": "né!"})).json()
    assert found == [
        {"id": 110, "text": "n", "start": 0, "stop": 1},
        {"id": 233, "text": "é", "start": 1, "stop": 3},
        {"id": 33, "text": "!", "start": 3, "stop": 4},
    ]
    chat = {"messages": [{"role": "user", "content": "hi"}], "model": "tgi"}
    found = (await served.post("/chat_tokenize", json=chat)).json()
    assert found["templated_text"] == "user:hi\n"
    assert "".join(each["text"] for each in found["tokenize_response"]) == "user:hi\n"
    assert found["tokenize_response"][-1] == {"id": 10, "text": "\n", "start": 7, "stop": 8}
    wrong = await served.post("/chat_tokenize", json={"messages": []})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "validation")
