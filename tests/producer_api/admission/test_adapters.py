"""Names of LoRA adapters: what a request is admitted for, over the transports that name a model."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from producer_api.admission.model_catalog import ModelCatalog
from producer_api.admission.traffic import as_recorded, direct
from producer_api.auth.principal import ANONYMOUS, Principal
from producer_api.routes import admin_requests, jobs
from producer_api.rpc import inference_pb2 as pb
from shared.accounts.scopes import Scopes
from shared.adapters.adapter import Adapter
from shared.backend import Backend
from shared.errors import PermissionDenied
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Embed, PriorityClass, Request, RequestState
from shared.repository.traffic.rules import Branch, Shadow, Split
from shared.settings import Settings
from shared.token_log.interface import RequestRecord
from tests.support.fakes import MODEL
from tests.support.grpc_client import serving
from tests.support.scripted_worker import ScriptedWorker

ADAPTER = Adapter(name="sql", base=MODEL, path="p", digest="d", rank=4, created=5)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lora_dir": settings.data_dir, "runtime_lora_updating": True})


@pytest.fixture(autouse=True)
async def registered(backend: Backend) -> None:
    await backend.adapters.register(ADAPTER, replace=False)


async def test_jobs_over_http_and_grpc_go_to_the_base_model(
    client: httpx.AsyncClient, settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    made = await client.post("/v1/jobs", json={"model": "sql", "prompt": "x"})
    assert made.json()["model"] == "sql"
    async with serving(settings, backend) as (_, rpc):
        assert (await rpc.Submit(pb.JobRequest(model="sql", prompt="x"))).model == "sql"
        assert {each.id for each in (await rpc.ListModels(pb.ListModelsRequest())).models} == {MODEL, "sql"}
    for _ in range(2):
        request = await worker.answer("x")
        assert (request.model, request.adapter) == (MODEL, ADAPTER.ref)
    assert (await client.get(f"/v1/jobs/{made.json()['id']}")).json()["model"] == "sql"


async def test_lines_of_a_batch_and_names_of_a_split_have_their_adapter(app: FastAPI, backend: Backend) -> None:
    catalog = app.state.context.catalog
    drafts = [Request(id="", model="sql", prompt=each) for each in "ab"]
    found = await direct(catalog, drafts, job_id="req_1", principal=ANONYMOUS)
    assert [(each.model, each.adapter) for each in found] == [(MODEL, ADAPTER.ref)] * 2
    await backend.traffic.set_split(Split(name="prod", branches=(Branch(model="sql"),)))
    catalog.forget_snapshot()
    [split] = await direct(catalog, [Request(id="", model="prod", prompt="x")], job_id="req_1", principal=ANONYMOUS)
    assert (split.model, split.adapter) == (MODEL, ADAPTER.ref)
    embedding = Request(id="", model="sql", work=Embed(inputs=("x",)))
    [plain] = await direct(catalog, [embedding], job_id="req_1", principal=ANONYMOUS)
    assert (plain.model, plain.adapter) == (MODEL, None)


async def test_a_model_that_was_added_later_has_its_name(app: FastAPI, backend: Backend) -> None:
    """Given an adapter whose name a worker announces as that of its model."""
    catalog = app.state.context.catalog
    await backend.registry.beat(WorkerInfo(id="w", pid=1, model="sql", state="ready", max_model_len=64))
    catalog.forget_snapshot()
    draft = Request(id="", model="sql", prompt="x")
    [found] = await direct(catalog, [draft], job_id="req_1", principal=ANONYMOUS)
    assert (found.model, found.adapter) == ("sql", None)
    assert [worker.id for worker in await catalog.workers("sql")] == ["w"]
    assert (await catalog.adapters(), await catalog.aliases()) == ({}, {})


async def test_a_paused_base_model_closes_its_adapters_in_a_split(app: FastAPI, backend: Backend) -> None:
    split = Split(name="prod", branches=(Branch(model="sql", weight=99), Branch(model="open", weight=1)))
    await backend.traffic.set_split(split)
    await backend.queues.set_gate(MODEL, "paused")
    app.state.context.catalog.forget_snapshot()
    draft = Request(id="", model="prod", prompt="x")
    found = [
        await direct(app.state.context.catalog, [draft], job_id=f"req_{i}", principal=ANONYMOUS) for i in range(20)
    ]
    assert {each.model for [each] in found} == {"open"}


async def test_a_job_of_an_adapter_belongs_to_its_name(client: httpx.AsyncClient, app: FastAPI) -> None:
    """Given admin keys for the adapter's name, and for the base model alone."""
    job = (await client.post("/v1/jobs", json={"model": "sql", "prompt": "x"})).json()["id"]
    context = app.state.context
    for models, may in (({"sql"}, True), ({MODEL}, False)):
        caller = Principal("t", scopes=Scopes(models=frozenset(models)))
        for call in (
            lambda caller=caller: admin_requests.see(context, job, caller),
            lambda caller=caller: jobs.timeline(context, job, None, caller),
        ):
            if may:
                assert (await call()).status_code == 200
            else:
                with pytest.raises(PermissionDenied):
                    await call()


async def test_workers_without_a_folder_of_adapters_are_not_waited_for(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    refused = await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "p"})
    assert (refused.status_code, "lora_dir is not set" in refused.json()["error"]["message"]) == (400, True)


async def test_a_key_needs_the_name_of_the_adapter(app: FastAPI) -> None:
    gateway, draft = app.state.context.gateway, Request(id="", model="sql", prompt="x")
    for models, may in ((frozenset({MODEL}), False), (frozenset({"sql"}), True)):
        caller = Principal("t", scopes=Scopes(models=models))
        if may:
            assert (await gateway.submit(draft, principal=caller, seed=1)).request.adapter == ADAPTER.ref
        else:
            with pytest.raises(PermissionDenied):
                await gateway.submit(draft, principal=caller, seed=1)


async def test_a_repeated_key_joins_the_answer_of_an_unloaded_adapter(
    client: httpx.AsyncClient, app: FastAPI, backend: Backend
) -> None:
    headers, body = {"idempotency-key": "k"}, {"model": "sql", "prompt": "x"}
    first = (await client.post("/v1/jobs", json=body, headers=headers)).json()
    await backend.adapters.remove("sql")
    app.state.context.catalog.forget_snapshot()
    again = await client.post("/v1/jobs", json=body, headers=headers)
    assert (again.json()["id"], again.json()["model"]) == (first["id"], "sql")
    assert (await client.post("/v1/jobs", json=body)).status_code == 404


def test_an_interrupted_admission_keeps_its_adapter() -> None:
    """Given that the adapter is unknown by now: the request does not become one of the base model."""
    record = RequestRecord(
        *("req_1", MODEL, "t", PriorityClass.STANDARD, RequestState.QUEUED, 1.0), adapter=ADAPTER.ref
    )
    finished = as_recorded(Request(id="req_1", model="sql", prompt="x"), record)
    assert (finished.model, finished.adapter) == (MODEL, ADAPTER.ref)


async def test_a_shadow_copy_has_no_adapter(client: httpx.AsyncClient, app: FastAPI, backend: Backend) -> None:
    await backend.traffic.set_shadow(Shadow(name="sql", model=MODEL))
    app.state.context.catalog.forget_snapshot()
    await client.post("/v1/jobs", json={"model": "sql", "prompt": "x"})
    await app.state.context.shadow_copies.started()
    taken = ScriptedWorker(backend)
    found = {request.priority: request.adapter for request in [await taken.answer("x") for _ in range(2)]}
    assert found == {PriorityClass.STANDARD: ADAPTER.ref, PriorityClass.BATCH: None}


async def test_any_name_means_itself_while_adapters_are_registered(settings: Settings, backend: Backend) -> None:
    catalog = ModelCatalog(backend, settings.model_copy(update={"any_model_name": True}))
    assert await catalog.any_model() is None
    assert await catalog.named("sql") == "sql"
    await backend.adapters.remove("sql")
    catalog.forget_snapshot()
    assert await catalog.named("sql") == MODEL


def test_prefixes_of_adapters_are_separate() -> None:
    draft = Request(id="1", model=MODEL, prompt="x")
    adapted = msgspec.structs.replace(draft, adapter=ADAPTER.ref)
    other = msgspec.structs.replace(draft, adapter=msgspec.structs.replace(ADAPTER.ref, digest="e"))
    assert len({each.cache_scope for each in (draft, adapted, other)}) == 3
    assert (adapted.as_named().model, adapted.as_named().adapter) == ("sql", None)
