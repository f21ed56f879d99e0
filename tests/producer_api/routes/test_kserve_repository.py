"""Administration over KServe's protocol: orders for models, read-only settings, refusals by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from producer_api.app import create_app
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.repository.status import ModelStatus
from shared.repository.store import ModelOrder, OrderResult
from shared.settings import Settings
from tests.support.api_server import calling
from tests.support.metered import changed, metered, planned
from tests.support.tensor_api import TensorApi, in_memory
from tests.support.tensor_worker import TensorWorker, working
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")
INFER = {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [1]}]}


@asynccontextmanager
async def obeying(worker: TensorWorker, error: str = "") -> AsyncIterator[list[ModelOrder]]:
    """Carry out orders until the body ends, and yield those that were carried out."""
    seen: list[ModelOrder] = []
    backend = worker.backend

    async def obey() -> None:
        while True:
            for order in await backend.repository.orders():
                if await backend.repository.result(order.id) is None:
                    seen.append(order)
                    await backend.repository.answer(OrderResult(id=order.id, error=error))
                    gone = ModelStatus(name=order.model, spec=worker.models[order.model].spec)
                    await worker.announce(*([gone] if order.action == "unload" else []))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(obey())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield seen
    finally:
        task.cancel()


async def test_models_are_loaded_and_unloaded(tensors: TensorApi, triton: InferenceServerClient) -> None:
    async with obeying(tensors.worker) as orders:
        await triton.load_model("add_sub")
        config = json.dumps({"name": "add_sub", "backend": "python"})
        await triton.load_model("add_sub", config=config, files={"file:1/model.py": b"\0\xff"})
        await triton.unload_model("add_sub", unload_dependents=True)
        assert not await triton.is_model_ready("add_sub")
        await triton.load_model("add_sub")
        assert await triton.is_model_ready("add_sub")
    assert [each.action for each in orders] == ["load", "load", "unload", "load"]
    assert (orders[1].config, orders[1].files) == (config, {"1/model.py": b"\0\xff"})
    assert [each.unload_dependents for each in orders] == [False, False, True, False]


async def test_a_model_that_cannot_be_loaded_says_why(tensors: TensorApi, triton: InferenceServerClient) -> None:
    async with obeying(tensors.worker, error="no such graph"):
        with pytest.raises(InferenceServerException, match="failed to load 'add_sub': no such graph"):
            await triton.load_model("add_sub")


async def test_wrong_orders_are_refused(tensors: TensorApi) -> None:
    for name, body in (
        ("..%2fx", {}),
        ("a%2f..%2fb", {}),
        ("m", {"parameters": {"file:1/../../x": "", "config": "{}"}}),
        ("m", {"parameters": {"file:1/x": ""}}),
        ("m", {"parameters": 1}),
    ):
        found = await tensors.http.post(f"/v2/repository/models/{name}/load", json=body)
        assert found.status_code in (400, 404), name
        assert list(found.json()) == ["error"]
    found = await tensors.http.post(
        "/v2/repository/models/m/unload", json={"parameters": {"unload_dependents": "yes"}}
    )
    assert (found.status_code, found.json()["error"]) == (400, "unload_dependents must be true or false")
    assert not [each for each in await tensors.backend.repository.orders() if each.model == "m"]


async def test_settings_are_told_and_not_changed(tensors: TensorApi, triton: InferenceServerClient) -> None:
    assert (await triton.get_log_settings())["log_verbose_level"] == 0
    assert (await triton.get_trace_settings())["trace_level"] == ["OFF"]
    assert (await triton.update_trace_settings("add_sub", {"trace_level": ["OFF"], "trace_rate": None}))[
        "trace_rate"
    ]
    for change in (
        lambda: triton.update_log_settings({"log_verbose_level": 1}),
        lambda: triton.update_trace_settings("add_sub", {"trace_level": ["TIMESTAMPS"]}),
    ):
        with pytest.raises(InferenceServerException, match="cannot be changed here") as refusal:
            await change()
        assert refusal.value.status() == "501"
    for content in (b"[]", b"{", b"[" * 5000):
        assert (await tensors.http.post("/v2/logging", content=content)).status_code == 400


async def test_shared_memory_is_refused_by_name(triton: InferenceServerClient) -> None:
    calls: dict[str, Callable[[], object]] = {
        "system": triton.get_system_shared_memory_status,
        "system ": lambda: triton.get_system_shared_memory_status("region"),
        "system  ": lambda: triton.register_system_shared_memory("region", "/key", 8),
        "system   ": triton.unregister_system_shared_memory,
        "CUDA": triton.get_cuda_shared_memory_status,
        "CUDA ": lambda: triton.register_cuda_shared_memory("region", b"handle", 0, 8),
        "CUDA  ": lambda: triton.unregister_cuda_shared_memory("region"),
    }
    for kind, call in calls.items():
        with pytest.raises(
            InferenceServerException, match=f"{kind.strip()} shared memory is not supported"
        ) as refusal:
            await call()
        assert refusal.value.status() == "501"


async def test_keys_need_the_group_and_the_admin_scope(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(in_memory(tmp_path), auth=True)
    async with Database.from_settings(settings) as database:
        keys = ApiKeys(database, pepper_of(settings))
        (_, predicting), (_, chatting), (_, narrow) = [
            await keys.create(tenant="t", scopes=Scopes.parse(**scopes))
            for scopes in ({"routes": ["predict"]}, {"routes": ["chat"]}, {"models": ["batched"]})
        ]
    backend = Backend.memory(settings)
    async with working(backend):
        app = create_app(settings, backend)
        async with (
            calling(app) as anonymous,
            calling(app, predicting) as predictor,
            calling(app, chatting) as chatter,
            calling(app, narrow) as other,
        ):
            path = "/v2/models/identity_int32/infer"
            assert (await anonymous.get("/v2/health/ready")).status_code == 200
            assert (await anonymous.post(path, json=INFER)).status_code == 401
            assert (await predictor.post(path, json=INFER)).status_code == 200
            for refused in (
                await chatter.post(path, json=INFER),
                await chatter.get("/v2"),
                await other.post(path, json=INFER),
                await predictor.post("/v2/repository/models/m/load"),
                await predictor.get("/v2/logging"),
            ):
                assert (refused.status_code, list(refused.json())) == (403, ["error"])
            seen = (await other.post("/v2/repository/index")).json()
            assert {each["name"] for each in seen} == {"batched"}
        await app.state.context.close()


async def test_inferences_are_charged(settings: Settings) -> None:
    limited = planned(settings, {"requests": "1/day"})
    backend = Backend.open(limited)
    await backend.redis.flushall()
    async with working(backend), metered(limited, backend) as api:
        path = "/v2/models/identity_int32/infer"
        first, second = [await api.http.post(path, json=INFER) for _ in range(2)]
        assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
        assert (second.status_code, list(second.json())) == (429, ["error"])
        assert int(second.headers["retry-after"]) > 0
    await backend.close()
