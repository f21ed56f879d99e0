"""Answers of every route conform to OpenAI's types, field by field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    FileDeleted,
    FileObject,
    Model,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.sdk.strict import strictly
from tests.support.fakes import EMBEDDER, MODEL

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3}
TEXT = {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 3, "n": 2}
VECTORS = {"model": EMBEDDER, "input": ["a", "b"], "encoding_format": "float"}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
FOLDER = "/v1/chat/completions"
LINE = {"custom_id": "c", "method": "POST", "url": FOLDER, "body": CHAT}
MODEL_FIELDS = ("max_model_len", "task", "headrace", "root", "parent")  # added by Headrace


async def chunks(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    """Return the data of all events of a stream."""
    response = await http.post(path, json=body)
    assert response.status_code == 200 and response.headers["x-request-id"]
    found = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return found[:-1]


async def test_chat(http: httpx.AsyncClient) -> None:
    for fields in ({}, {"n": 2, "logprobs": True, "top_logprobs": 2}, {"seed": 1, "stop": ["x"]}):
        answer = await http.post("/v1/chat/completions", json={**CHAT, **fields})
        assert answer.headers["x-request-id"]
        strictly(ChatCompletion, answer.content)
        for path in ("/v1/chat/completions", "/v1/chat/completions/stream"):
            received = [
                strictly(ChatCompletionChunk, data) for data in await chunks(http, path, CHAT | fields | USAGE)
            ]
            assert received[-1].usage is not None and not received[-1].choices
            assert all(chunk.usage is None for chunk in received[:-1])
            assert len({chunk.id for chunk in received}) == 1


async def test_completions(http: httpx.AsyncClient) -> None:
    """Only the last chunk has a finish_reason, as OpenAI's, though its type requires one in each."""
    for fields in ({}, {"echo": True}, {"prompt": [1, 2, 3], "echo": True, "seed": 3}):
        strictly(Completion, (await http.post("/v1/completions", json={**TEXT, **fields})).content)
        for data in await chunks(http, "/v1/completions", TEXT | fields | USAGE):
            chunk = json.loads(data)
            for choice in chunk["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
            strictly(Completion, json.dumps(chunk))


async def test_embeddings(http: httpx.AsyncClient) -> None:
    found = strictly(CreateEmbeddingResponse, (await http.post("/v1/embeddings", json=VECTORS)).content)
    assert [len(each.embedding) for each in found.data] == [384, 384]


async def test_models(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert set(listed) == {"object", "data"}
    for data in listed["data"]:
        strictly(Model, json.dumps(data), MODEL_FIELDS)
    strictly(Model, (await http.get(f"/v1/models/{MODEL}")).content, MODEL_FIELDS)


async def test_files_and_batches(http: httpx.AsyncClient) -> None:
    """Create, list, retrieve, cancel and delete."""
    upload = {"file": ("in.jsonl", json.dumps(LINE).encode() + b"\n")}
    made = await http.post("/v1/files", files=upload, data={"purpose": "batch"})
    file = strictly(FileObject, made.content)
    for each in (await http.get("/v1/files")).json()["data"]:
        strictly(FileObject, json.dumps(each))
    asked = {"input_file_id": file.id, "endpoint": FOLDER, "completion_window": "24h"}
    batch = strictly(Batch, (await http.post("/v1/batches", json=asked)).content)
    strictly(Batch, (await http.get(f"/v1/batches/{batch.id}")).content)
    for each in (await http.get("/v1/batches")).json()["data"]:
        strictly(Batch, json.dumps(each))
    strictly(Batch, (await http.post(f"/v1/batches/{batch.id}/cancel")).content)
    strictly(FileDeleted, (await http.delete(f"/v1/files/{file.id}")).content)


async def test_async_client_and_raw_headers(sdk: AsyncOpenAI) -> None:
    """Given each route through the SDK, it returns its objects, and the request id with `with_raw_response`."""
    raw = sdk.with_raw_response
    for response, kind in (
        (await raw.chat.completions.create(**CHAT), ChatCompletion),
        (await raw.completions.create(**TEXT), Completion),
        (await raw.embeddings.create(**VECTORS), CreateEmbeddingResponse),
        (await raw.models.retrieve(MODEL), Model),
    ):
        assert response.headers["x-request-id"]
        assert isinstance(response.parse(), kind)
    answer = await sdk.chat.completions.create(**CHAT)
    assert answer._request_id
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        async with sdk.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=3) as stream:
            await stream.get_final_completion()
    assert cut.value.completion.choices[0].message.content == answer.choices[0].message.content
    streamed = await sdk.completions.create(**TEXT | {"n": 1}, stream=True)
    assert len("".join([chunk.choices[0].text async for chunk in streamed]).split()) == 6
    async with sdk.completions.with_streaming_response.create(**TEXT) as held:
        assert held.headers["x-request-id"] and json.loads(await held.read())["object"] == "text_completion"


async def test_sync_client(api: str) -> None:
    import asyncio

    def ask() -> None:
        with OpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0) as sdk:
            assert sdk.chat.completions.create(**CHAT).usage.completion_tokens == 3
            stream = sdk.chat.completions.create(**CHAT, stream=True)
            received = [chunk.choices[0].delta.content or "" for chunk in stream]
            assert len("".join(received).split()) == 3
            assert [choice.index for choice in sdk.completions.create(**TEXT).choices] == [0, 1, 2, 3]
            assert {c.choices[0].index for c in sdk.completions.create(**TEXT, stream=True)} == {0, 1, 2, 3}
            assert len(sdk.embeddings.create(model=EMBEDDER, input="x").data[0].embedding) == 384
            assert [model.id for model in sdk.models.list()] == [EMBEDDER, MODEL]
            file = sdk.files.create(file=("in.jsonl", json.dumps(LINE).encode()), purpose="batch")
            assert json.loads(sdk.files.content(file.id).read()) == LINE
            batch = sdk.batches.create(input_file_id=file.id, endpoint=FOLDER, completion_window="24h")
            assert [each.id for each in sdk.batches.list()] == [batch.id]
            with pytest.raises(openai.NotFoundError):
                sdk.files.retrieve("file-none")

    await asyncio.to_thread(ask)
