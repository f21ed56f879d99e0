"""Unknown fields over every transport: accepted and named to the caller, or refused with `strict_fields`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from producer_api.app import create_app
from producer_api.batch_runner.line_body import CHAT, read_body
from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.errors import InvalidRequest
from shared.schemas.unknown_fields import HEADER
from shared.settings import Settings
from tests.support.api_server import calling, chat
from tests.support.fakes import MODEL
from tests.support.grpc_client import chat as rpc_chat
from tests.support.grpc_client import refusal
from tests.support.grpc_client import serving as serving_rpc
from tests.support.scripted_worker import ScriptedWorker

UNKNOWN = {"keep_alive": "5m", "options": {"a": "secret"}}
NAMES = "keep_alive, options"
JOB = {"model": MODEL, "prompt": "hi"}
GENERATING = [
    ("/v1/chat/completions", chat()),
    ("/v1/chat/completions", chat(stream=True)),
    ("/v1/chat/completions/stream", chat()),
    ("/v1/completions", JOB),
    ("/v1/completions", {**JOB, "stream": True}),
    ("/v1/responses", {"model": MODEL, "input": "hi"}),
    ("/v1/responses", {"model": MODEL, "input": "hi", "stream": True}),
    ("/v1/jobs", JOB),
]


@pytest.fixture
def strict(settings: Settings) -> Settings:
    return settings.model_copy(update={"strict_fields": True})


@pytest.fixture
async def strict_client(
    strict: Settings, backend: Backend, worker: ScriptedWorker
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(strict, backend)
    async with calling(app) as opened:
        yield opened
    await app.state.context.close()


@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_unknown_fields_are_named_in_a_header(
    client: httpx.AsyncClient, worker: ScriptedWorker, path: str, body: dict[str, Any]
) -> None:
    """Whole, streamed and in the background."""
    response, request = await asyncio.gather(client.post(path, json={**body, **UNKNOWN}), worker.answer("x"))
    assert response.status_code in (200, 202), response.text
    assert response.headers[HEADER] == NAMES
    assert request.model == MODEL
    plain, _ = await asyncio.gather(client.post(path, json=body), worker.answer("x"))
    assert HEADER not in plain.headers


async def test_unknown_form_fields_are_named(client: httpx.AsyncClient, strict_client: httpx.AsyncClient) -> None:
    form = {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "nonsense": "1"}}
    accepted = await client.post("/v1/files", **form)
    refused = await strict_client.post("/v1/files", **form)
    assert (accepted.status_code, accepted.headers[HEADER]) == (200, "nonsense")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "nonsense")


async def test_an_error_names_them_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=chat(n=0, **UNKNOWN))
    assert (response.status_code, response.headers[HEADER]) == (400, NAMES)


@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_strict_fields_refuse_them(strict_client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    response = await strict_client.post(path, json={**body, "modle": "m"})
    assert response.status_code == 400
    error = response.json().get("error", response.json())
    assert error["param"] == "modle"
    assert "did you mean model?" in (error.get("message") or error["detail"])


async def test_unknown_numbers_of_a_message_are_named(
    settings: Settings, strict: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """Over gRPC, a later version's fields are numbers; they are in the metadata of the answer."""
    job = pb.JobRequest.FromString(rpc_chat().SerializeToString() + b"\xa2\x3e\x01x")
    job.messages[0].MergeFromString(b"\xa2\x06\x01x")
    async with serving_rpc(settings, backend) as (_, client):
        call = client.Submit(job)
        await call
        assert dict(await call.initial_metadata())[HEADER] == "996, messages[0].100"
    async with serving_rpc(strict, backend) as (_, client):
        error = await refusal(client.Submit(job))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "996 is the number of an unknown field of headrace.v1.JobRequest"


def test_a_batch_line_accepts_or_refuses_them() -> None:
    line = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "keep_alive": 1}'
    assert read_body(CHAT, line, "t", strict_fields=False).ignored == "keep_alive"
    with pytest.raises(InvalidRequest, match="keep_alive"):
        read_body(CHAT, line, "t", strict_fields=True)
