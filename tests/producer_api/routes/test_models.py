"""The list of models: what serves each, and its limits."""

from __future__ import annotations

from typing import Any

import httpx

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker

READY = {"state": "ready", "progress": 1.0, "reason": None}


async def listed(settings: Settings, backend: Backend) -> dict[str, Any]:
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url) as http:
        models = (await http.get("/v1/models")).json()["data"]
        for model in models:
            assert (await http.get(f"/v1/models/{model['id']}")).json() == model
    return {model["id"]: model for model in models}


async def test_a_model_shows_its_runtime_and_limits(settings: Settings, backend: Backend) -> None:
    """Only ready workers count."""
    await ScriptedWorker(backend).announce()
    for name, state in (("w2", "ready"), ("w3", "draining"), ("w4", "loading")):
        await backend.registry.beat(
            WorkerInfo(id=name, pid=1, model=MODEL, state=state, max_model_len=1024, max_num_seqs=8)
        )
    await backend.registry.beat(
        WorkerInfo(id="w5", pid=1, model="other", state="ready", runtime="upstream", max_num_seqs=2)
    )
    found = await listed(settings, backend)

    assert found[MODEL].items() >= {"object": "model", "owned_by": "headrace", "max_model_len": 1024}.items()
    serving = {"runtime": "native", "max_num_seqs": 8, "workers_ready": 2}
    assert found[MODEL]["headrace"] == {**serving, **READY}
    serving = {"runtime": "upstream", "max_num_seqs": 2, "workers_ready": 1}
    assert found["other"]["headrace"] == {**serving, **READY}


async def test_a_model_that_loads_has_no_runtime_yet(settings: Settings, backend: Backend) -> None:
    await ScriptedWorker(backend).announce("loading", progress=0.5)
    model = (await listed(settings, backend))[MODEL]
    serving = {"runtime": None, "max_num_seqs": None, "workers_ready": 0}
    assert model["headrace"] == {**serving, "state": "loading", "progress": 0.5, "reason": None}
    assert model["max_model_len"] is None
