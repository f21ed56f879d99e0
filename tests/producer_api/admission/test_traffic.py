"""Aliases and splits: which model gets a request, over the APIs that name one."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from producer_api.admission.traffic import Direction, direct, placed
from producer_api.auth.client_address import Client
from producer_api.auth.principal import ANONYMOUS, Principal
from producer_api.rpc import inference_pb2 as pb
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import PermissionDenied
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Infer, Request, SequenceStep, Tensor
from shared.queue.interface import Room
from shared.queue.survey import Gate
from shared.repository.traffic.rules import Branch, KeyKind, Split
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request
from tests.support.grpc_client import serving
from tests.support.scripted_worker import ScriptedWorker

OTHER = "other"
ALIAS = Split(name="prod", branches=(Branch(model=MODEL),))
HALVES = Split(name="prod", branches=(Branch(model=MODEL), Branch(model=OTHER)))
TENSORS = Infer(inputs=(Tensor("x", "INT8", (1,), b"\1"),))


@pytest.fixture(autouse=True)
async def other(backend: Backend) -> None:
    await backend.registry.beat(WorkerInfo(id="w2", pid=1, model=OTHER, state="ready", max_model_len=512))


async def waiting(backend: Backend) -> dict[str, int]:
    return {model: (await backend.transport.depth(model)).waiting for model in (MODEL, OTHER)}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/chat/completions/stream", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_answer_names_the_model_behind_an_alias(
    client: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend, path: str, body: dict[str, Any]
) -> None:
    await backend.traffic.set_split(ALIAS)
    asked = asyncio.create_task(client.post(path, json={**body, "model": "prod"}))
    assert (await worker.answer("x")).model == MODEL
    answer = await asked
    assert answer.status_code == 200
    assert f'"model":"{MODEL}"' in answer.text


async def test_alias_is_listed_with_its_models_properties(client: httpx.AsyncClient, backend: Backend) -> None:
    await backend.traffic.set_split(Split(name="prod", branches=(Branch(model=OTHER),)))
    listed = (await client.get("/v1/models")).json()["data"]
    assert {model["id"]: model["max_model_len"] for model in listed} == {MODEL: 1024, OTHER: 512, "prod": 512}
    [other, prod] = [(await client.get(f"/v1/models/{name}")).json() for name in (OTHER, "prod")]
    assert prod == {**other, "id": "prod", "root": "prod"}
    assert prod["headrace"]["workers_ready"] == 1


async def test_job_by_grpc_may_name_an_alias(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    await backend.traffic.set_split(ALIAS)
    async with serving(settings, backend) as (_, client):
        job = await client.Submit(pb.JobRequest(model="prod", prompt="hi"))
        assert job.model == MODEL


async def test_split_sends_requests_to_both_models(client: httpx.AsyncClient, backend: Backend) -> None:
    await backend.traffic.set_split(HALVES)
    for _ in range(20):
        assert (await client.post("/v1/jobs", json={"model": "prod", "prompt": "x"})).status_code == 202
    found = await waiting(backend)
    assert sum(found.values()) == 20 and min(found.values()) > 0


async def test_route_key_keeps_its_branch(client: httpx.AsyncClient, backend: Backend) -> None:
    await backend.traffic.set_split(Split(name="prod", branches=HALVES.branches, by="route_key"))
    branches = {}
    for key in ("a", "b", "c", "d", "e", "f", "g", "h"):
        models = set()
        for _ in range(3):
            made = await client.post(
                "/v1/jobs", json={"model": "prod", "prompt": "x"}, headers={"x-route-key": key}
            )
            models.add(made.json()["model"])
        [branches[key]] = models
    assert set(branches.values()) == {MODEL, OTHER}


async def test_prompts_of_one_request_take_one_branch(app: FastAPI, backend: Backend) -> None:
    await backend.traffic.set_split(HALVES)
    drafts = [Request(id="", model="prod", prompt="x")] * 8
    admission = await app.state.context.gateway.submit_all(drafts, principal=ANONYMOUS, seed=None)
    assert len({request.model for request in admission.requests}) == 1
    assert sorted((await waiting(backend)).values()) == [0, 8]


async def test_retry_under_one_key_keeps_its_model(
    client: httpx.AsyncClient, app: FastAPI, backend: Backend
) -> None:
    """Given rules that change between the two, the second finds the request of the first."""
    await backend.traffic.set_split(ALIAS)
    sent = {"json": {"model": "prod", "prompt": "x"}, "headers": {"idempotency-key": "k"}}
    first = await client.post("/v1/jobs", **sent)
    await backend.traffic.set_split(Split(name="prod", branches=(Branch(model=OTHER),)))
    app.state.context.catalog.forget_snapshot()
    again = await client.post("/v1/jobs", **sent)
    assert (again.json()["id"], again.json()["model"]) == (first.json()["id"], MODEL)
    assert await waiting(backend) == {MODEL: 1, OTHER: 0}


async def test_interrupted_admission_is_finished_for_its_model(
    client: httpx.AsyncClient, app: FastAPI, backend: Backend
) -> None:
    """Given a log of a request that never reached the queue, the retry queues it for the model of the log."""
    await backend.traffic.set_split(ALIAS)
    sent = {"json": {"model": "prod", "prompt": "x"}, "headers": {"idempotency-key": "k"}}
    first = (await client.post("/v1/jobs", **sent)).json()
    record = await backend.token_log.record(first["id"])
    assert record is not None
    await backend.transport.discard(record.ticket)
    await backend.traffic.set_split(Split(name="prod", branches=(Branch(model=OTHER),)))
    app.state.context.catalog.forget_snapshot()
    assert (await client.post("/v1/jobs", **sent)).json()["model"] == MODEL
    assert await waiting(backend) == {MODEL: 1, OTHER: 0}


async def test_rules_are_read_with_the_snapshot(client: httpx.AsyncClient, app: FastAPI, backend: Backend) -> None:
    """Given a snapshot that is fresh, a request reads no rules: it goes by those of the snapshot."""
    await client.get("/v1/models")
    await backend.traffic.set_split(Split(name=MODEL, branches=(Branch(model=OTHER),)))
    assert (await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).json()["model"] == MODEL


async def test_caller_needs_permission_for_name_and_model(backend: Backend, app: FastAPI) -> None:
    await backend.traffic.set_split(ALIAS)
    gateway = app.state.context.gateway
    draft = Request(id="", model="prod", prompt="x")
    for allowed in ({"prod"}, {MODEL}):
        caller = Principal("t", scopes=Scopes(models=frozenset(allowed)))
        with pytest.raises(PermissionDenied):
            await gateway.submit(draft, principal=caller, seed=None)
    both = Principal("t", scopes=Scopes(models=frozenset({"prod", MODEL})))
    assert (await gateway.submit(draft, principal=both, seed=None)).request.model == MODEL
    assert await waiting(backend) == {MODEL: 1, OTHER: 0}


async def test_requests_of_a_batch_line_follow_the_rules(backend: Backend, app: FastAPI) -> None:
    await backend.traffic.set_split(HALVES)
    drafts = [Request(id="", model="prod", prompt="x")] * 3
    found = Counter()
    for number in range(20):
        [model] = {
            each.model
            for each in await direct(app.state.context.catalog, drafts, job_id=f"req_{number}", principal=ANONYMOUS)
        }
        found[model] += 1
    assert set(found) == {MODEL, OTHER}


async def jobs(client: httpx.AsyncClient, number: int, model: str = "prod", **headers: str) -> Counter[str]:
    """Send jobs, and return how many each model got."""
    sent = [
        await client.post("/v1/jobs", json={"model": model, "prompt": "x"}, headers=headers) for _ in range(number)
    ]
    return Counter(each.json()["model"] for each in sent)


async def close(app: FastAPI, gate: Gate, *models: str) -> None:
    for model in models:
        await app.state.context.backend.queues.set_gate(model, gate)
    app.state.context.catalog.forget_snapshot()


@pytest.mark.parametrize("gate", ["paused", "draining"])
async def test_a_closed_model_gets_nothing_while_another_is_open(
    client: httpx.AsyncClient, app: FastAPI, backend: Backend, gate: Gate
) -> None:
    """The model that is open keeps its requests, and the closed one's keys come back to it."""
    await backend.traffic.set_split(Split(name="prod", branches=HALVES.branches, by="route_key"))
    keys = [f"key{number}" for number in range(12)]
    before = [await jobs(client, 1, **{"x-route-key": key}) for key in keys]
    await close(app, gate, MODEL)
    during = [await jobs(client, 1, **{"x-route-key": key}) for key in keys]
    assert during == [Counter({OTHER: 1})] * len(keys)
    assert (await jobs(client, 3, model=OTHER))[OTHER] == 3
    await close(app, "open", MODEL)
    assert [await jobs(client, 1, **{"x-route-key": key}) for key in keys] == before


async def test_requests_wait_while_all_models_of_a_name_are_paused(
    client: httpx.AsyncClient, app: FastAPI, backend: Backend, worker: ScriptedWorker
) -> None:
    """An alias has no other model, nor has a split of paused ones; they run when their queue is open again."""
    await backend.traffic.set_split(ALIAS)
    await close(app, "paused", MODEL)
    assert await jobs(client, 3) == {MODEL: 3}
    await backend.traffic.set_split(HALVES)
    await close(app, "paused", OTHER)
    split = await jobs(client, 20)
    assert min(split[MODEL], split[OTHER]) > 0
    assert (await backend.transport.pull(MODEL, "w", Room.all(8))).found == []
    await close(app, "open", MODEL, OTHER)
    assert await waiting(backend) == {MODEL: 3 + split[MODEL], OTHER: split[OTHER]}
    for _ in range(3 + split[MODEL]):
        await worker.answer("x")
    assert await waiting(backend) == {MODEL: 0, OTHER: split[OTHER]}


async def test_weights_hold_among_the_open_models(app: FastAPI, backend: Backend) -> None:
    """A closed model's share goes to those with a weight that the caller may use."""
    weights = {"a": 2.0, "b": 1.0, "c": 3.0, "none": 0.0, "forbidden": 9.0}
    branches = tuple(Branch(model=model, weight=weight) for model, weight in weights.items())
    caller = Principal("t", scopes=Scopes(models=frozenset({"a", "b", "c", "none"})))
    split = Split(name="prod", branches=branches)
    closed = [f"r{i}" for i in range(3000) if split.choose(f"r{i}").model == "c"]
    direction = Direction(caller, split, closed={"c"})
    found = Counter(direction.apply(Request(id=each, model="prod", prompt="x")).model for each in closed)
    assert set(found) == {"a", "b"}
    assert found["a"] / len(closed) == pytest.approx(2 / 3, abs=0.06)


def test_steps_of_a_sequence_stay_with_a_closed_model() -> None:
    direction = Direction(Principal("t"), HALVES, closed={MODEL})
    steps = [
        Request(id="r", model="prod", work=Infer(inputs=TENSORS.inputs, sequence=SequenceStep(i)))
        for i in range(16)
    ]
    assert {direction.apply(step).model for step in steps} == {MODEL, OTHER}


async def test_an_interrupted_line_is_finished_for_its_model(app: FastAPI, backend: Backend) -> None:
    """Given a queue that was paused after the log was created, the line still goes to the model of its log."""
    await backend.traffic.set_split(HALVES)
    gateway, catalog = app.state.context.gateway, app.state.context.catalog
    made = next(each for i in range(99) if HALVES.choose((each := make_request()).id).model == MODEL)
    await backend.token_log.create(made)
    await close(app, "paused", MODEL)
    draft = Request(id="", model="prod", prompt="x")
    [line] = await direct(catalog, [draft], job_id=made.id, principal=ANONYMOUS)
    assert line.model == OTHER
    admission = await gateway.submit_derived(line, job_id=made.id, seed=0, principal=ANONYMOUS)
    assert admission.request.model == MODEL
    assert await waiting(backend) == {MODEL: 1, OTHER: 0}


def test_version_of_a_branch_is_for_tensors() -> None:
    tensors = Request(id="", model="prod", work=TENSORS)
    assert placed(tensors, MODEL, "3").work.version == "3"
    explicit = Request(id="", model="prod", work=Infer(inputs=TENSORS.inputs, version="1"))
    assert placed(explicit, MODEL, "3").work.version == "1"
    assert placed(Request(id="", model="prod", prompt="x"), MODEL, "3").work is None


def test_steps_of_a_sequence_take_one_branch() -> None:
    branches = tuple(Branch(model=f"m{i}") for i in range(16))
    direction = Direction(Principal("t"), Split(name="prod", branches=branches))

    def model(job_id: str, sequence: int | str, tenant: str = "t") -> str:
        work = Infer(inputs=TENSORS.inputs, sequence=SequenceStep(sequence))
        return direction.apply(Request(id=job_id, model="prod", work=work, tenant=tenant)).model

    assert len({model(f"req_{i}", 7) for i in range(16)}) == 1
    assert len({model("req", i) for i in range(16)}) > 1
    assert len({model("req", 7, f"tenant-{i}") for i in range(16)}) > 1


@pytest.mark.parametrize(
    ("by", "first", "second", "same"),
    [
        ("request", {"id": "a"}, {"id": "b"}, False),
        ("tenant", {"id": "a", "tenant": "t"}, {"id": "b", "tenant": "t"}, True),
        ("user", {"id": "a", "user": "u"}, {"id": "b", "user": "u"}, True),
        ("user", {"id": "a"}, {"id": "b"}, False),
        ("api_key", {"id": "a"}, {"id": "b"}, True),
        ("route_key", {"id": "a"}, {"id": "b"}, True),
    ],
)
def test_value_that_decides(by: KeyKind, first: dict[str, str], second: dict[str, str], same: bool) -> None:
    branches = tuple(Branch(model=f"m{i}") for i in range(16))
    caller = Principal("t", key_id="key", client=Client(route_key="r"))
    direction = Direction(caller, Split(name="prod", branches=branches, by=by))
    models = [direction.apply(Request(model="prod", prompt="x", **each)).model for each in (first, second)]
    assert (models[0] == models[1]) is same
