"""Triton's generate extension with a model that generates text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from shared.errors import HeadraceError
from shared.protocol import ErrorInfo, RequestState
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker

PATH = f"/v2/models/{MODEL}"
HEAD = {"model_name": MODEL, "model_version": "1"}


async def test_a_text_is_generated_with_our_parameters(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    answering = asyncio.create_task(worker.answer("Hello", " there"))
    sent = {
        "id": "7",
        "text_input": "hi",
        "parameters": {"max_tokens": 3, "stream": False},
        "temperature": 0,
        "x": 1,
    }
    found = await client.post(f"{PATH}/generate", json=sent)
    assert found.json() == {"id": "7", **HEAD, "text_output": "Hello there"}
    assert found.headers["x-headrace-ignored-fields"] == "x"
    request = await answering
    assert (request.prompt, request.params.max_tokens, request.params.temperature) == ("hi", 3, 0)


async def test_a_text_is_streamed(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    answering = asyncio.create_task(worker.answer("Hello", "", " there"))
    found = await client.post(f"{PATH}/versions/1/generate_stream", json={"text_input": "hi"})
    await answering
    assert events(found) == [{**HEAD, "text_output": "Hello"}, {**HEAD, "text_output": " there"}]


async def test_an_error_in_a_stream_ends_it(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    async def fail(*texts: str) -> None:
        job = await worker.take()
        for text in texts:
            await job.say(text)
        await job.end(RequestState.FAILED, ErrorInfo.from_error(HeadraceError("out of memory")))

    for texts in ((), ("Hello",)):
        failing = asyncio.create_task(fail(*texts))
        found = await client.post(f"{PATH}/generate_stream", json={"text_input": "hi"})
        await failing
        if texts:
            assert events(found) == [{**HEAD, "text_output": "Hello"}, {"error": "out of memory"}]
        else:
            assert (found.status_code, found.json()) == (500, {"error": "out of memory"})


async def test_wrong_bodies_are_refused(client: httpx.AsyncClient) -> None:
    for sent, status, reason in (
        ({}, 400, "text_input must be a string that is not empty"),
        ({"text_input": ""}, 400, "text_input must be a string"),
        ({"text_input": ["a"]}, 400, "text_input must be a string"),
        ({"text_input": "hi", "n": 2}, 400, "n must be 1"),
        ({"text_input": "hi", "temperature": -1}, 400, "temperature must be"),
        ({"text_input": "hi", "parameters": 1}, 400, "parameters must be"),
        ({"text_input": "hi", "max_tokens": "many"}, 400, "max_tokens must be"),
    ):
        found = await client.post(f"{PATH}/generate", json=sent)
        assert (found.status_code, reason in found.json()["error"]) == (status, True), found.text


async def test_tensors_are_refused_by_a_model_of_texts(client: httpx.AsyncClient) -> None:
    found = await client.post(f"{PATH}/infer", json={"inputs": []})
    assert (found.status_code, found.json()["error"]) == (400, f"{MODEL} takes texts, not tensors")


def events(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]
