"""Targets for the first token over HTTP and gRPC: order of service, refusal by the estimate, bad values."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import PermissionDenied
from shared.protocol import PriorityClass
from shared.queue.interface import Room
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request
from tests.support.grpc_client import chat as grpc_chat
from tests.support.grpc_client import details, refusal
from tests.support.grpc_client import serving as serving_rpc
from tests.support.scripted_worker import ScriptedWorker

QUEUES = ("redis", "kafka")
TARGET, THEIRS, POLICY = "x-headrace-ttft-target-ms", "x-llm-d-slo-ttft-ms", "x-headrace-ttft-policy"
OBJECTIVE = "x-llm-d-inference-objective"
BODY: dict[str, Any] = {"model": MODEL, "prompt": "hi"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/jobs", BODY),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", BODY),
    ("/v1/responses", {"model": MODEL, "input": "hi"}),
    ("/generate", {"inputs": "hi"}),
]
LATE = {TARGET: "1", POLICY: "refuse"}


async def occupy(backend: Backend) -> None:
    """Have a worker whose seats are all taken, by requests of two classes that were pulled just now."""
    transport = backend.transport
    for priority in (PriorityClass.INTERACTIVE, PriorityClass.STANDARD):
        await transport.publish(make_request(priority=priority))
    assert len((await transport.pull(MODEL, "full", Room.all(2))).found) == 2


async def test_the_nearest_target_is_answered_first(
    client: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    sent = [{}, {TARGET: "60000"}, {THEIRS: "1", TARGET: "15000"}, {THEIRS: "100"}]
    ids = [(await client.post("/v1/jobs", json=BODY, headers=each)).json()["id"] for each in sent]

    requests = [(await worker.answer("a")) for _ in ids]
    assert [each.id for each in requests] == [ids[3], ids[2], ids[0], ids[1]]
    assert [each.ttft_target for each in requests] == [0.1, 15.0, None, 60.0]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_late_answer_is_refused_with_the_estimate(
    client: httpx.AsyncClient, backend: Backend, settings: Settings, path: str, body: dict[str, Any]
) -> None:
    await occupy(backend)
    refused = await client.post(path, json=body, headers=LATE)

    assert refused.status_code == 503
    assert "target_unreachable" in refused.text
    found = refused.json()
    found = found["error"] if isinstance(found.get("error"), dict) else found
    assert found["estimated_wait"] > 0
    assert int(refused.headers["retry-after"]) >= max(1, found["estimated_wait"])
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_a_reachable_target_and_best_effort_are_admitted(client: httpx.AsyncClient, backend: Backend) -> None:
    await occupy(backend)
    for headers in ({TARGET: "3600000", POLICY: "refuse"}, {TARGET: "1"}, {TARGET: "1", POLICY: "best-effort"}):
        assert (await client.post("/v1/jobs", json=BODY, headers=headers)).status_code == 202


async def test_parts_of_one_body_share_its_target(client: httpx.AsyncClient, backend: Backend) -> None:
    """Given two prompts of which the second would be late, both are refused, and nothing stays in the queue."""
    await occupy(backend)
    body = {"model": MODEL, "prompt": ["a", "b"]}
    assert (await client.post("/v1/completions", json=body, headers=LATE)).status_code == 503
    assert (await backend.transport.depth(MODEL)).waiting == 0


REPEATED = [
    (TARGET, "100", "junk"),
    (TARGET, "100", "200"),
    (THEIRS, "junk", "100"),
    (POLICY, "refuse", "best-effort"),
]


@pytest.mark.parametrize(("name", "first", "second"), REPEATED)
async def test_a_header_with_two_values_is_refused(
    client: httpx.AsyncClient, settings: Settings, backend: Backend, name: str, first: str, second: str
) -> None:
    sent = [(name, first), (name, second), *([(TARGET, "100")] if name == POLICY else [])]
    assert (await client.post("/v1/jobs", json=BODY, headers=sent)).status_code == 400
    assert (await client.post("/v1/jobs", json=BODY, headers=[sent[0], *sent[:1], *sent[2:]])).status_code in (
        (202, 503) if first != "junk" else (400,)
    )
    async with serving_rpc(settings, backend) as (_, rpc):
        assert (await refusal(rpc.Submit(grpc_chat(), *sent))).code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("headers", [{TARGET: "0"}, {THEIRS: "soon"}, {TARGET: "5", POLICY: "maybe"}])
async def test_a_bad_value_is_refused_by_its_header(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    refused = await client.post(path, json=body, headers=headers)
    assert refused.status_code == (422 if path == "/generate" else 400)
    assert list(headers)[-1] in refused.text


async def test_an_objective_named_as_a_class_is_the_class(
    client: httpx.AsyncClient, worker: ScriptedWorker, settings: Settings, backend: Backend
) -> None:
    """All parts of a body get it, by HTTP and by gRPC; an objective with another name changes nothing."""
    sent = {"model": MODEL, "prompt": ["a", "b"], "priority": "standard"}
    asked = asyncio.create_task(client.post("/v1/completions", json=sent, headers={OBJECTIVE: "batch"}))
    assert [(await worker.answer("a")).priority for _ in range(2)] == [PriorityClass.BATCH] * 2
    assert (await asked).status_code == 200
    job = (await client.post("/v1/jobs", json=BODY, headers={OBJECTIVE: "premium"})).json()
    assert job["priority"] == (await worker.answer("a")).priority == "standard"
    async with serving_rpc(settings, backend) as (_, client_of_rpc):
        assert (await client_of_rpc.Submit(grpc_chat(), (OBJECTIVE, "interactive"))).priority == "interactive"


async def test_an_objective_needs_permission_for_its_class(app: FastAPI) -> None:
    caller = Principal("t", scopes=Scopes(classes=frozenset({"standard"})), client=Client())
    caller.client.turn_headers = {OBJECTIVE: "interactive"}
    with pytest.raises(PermissionDenied, match="interactive"):
        await app.state.context.gateway.submit(make_request(), principal=caller, seed=None)


async def test_grpc_takes_the_same_metadata(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    async with serving_rpc(settings, backend) as (_, client):
        await client.Submit(grpc_chat(), (TARGET, "1500"))
        assert (await worker.answer("a")).ttft_target == 1.5

        invalid = await refusal(client.Submit(grpc_chat(), (THEIRS, "-1")))
        assert (invalid.code(), details(invalid)["ErrorInfo"].metadata["param"]) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            THEIRS,
        )


async def test_grpc_refuses_a_late_answer(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    async with serving_rpc(settings, backend) as (_, client):
        await occupy(backend)
        late = await refusal(client.Submit(grpc_chat(), *LATE.items()))
        assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = details(late)
        assert found["ErrorInfo"].reason == "target_unreachable"
        assert float(found["ErrorInfo"].metadata["estimated_wait"]) > 0
        assert found["RetryInfo"].retry_delay.seconds >= 1
