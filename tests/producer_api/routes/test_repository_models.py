"""Models of a repository as callers of the API see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from producer_api.app import create_app
from shared.backend import Backend
from shared.repository.spec import ModelSpec
from shared.repository.status import UNLOADED, ModelStatus, VersionState, VersionStatus
from shared.settings import NO_MODEL, Settings
from tests.support.api_server import calling


@pytest.fixture
def alone(settings: Settings, tmp_path: Path) -> Settings:
    """Settings under which only the models of a repository are served."""
    return settings.model_copy(update={"model": NO_MODEL, "model_repository": tmp_path})


def status(name: str, state: VersionState, **fields: Any) -> ModelStatus:
    version = VersionStatus(version="1", state=state, **fields)
    return ModelStatus(name=name, spec=ModelSpec(name=name), versions=(version,))


async def test_models_are_listed_with_their_states(backend: Backend, alone: Settings) -> None:
    await backend.repository.report(
        "host",
        [
            status("broken", "UNAVAILABLE", reason="the graph has a cycle"),
            status("coming", "LOADING", progress=0.4),
            ModelStatus(name="later", spec=ModelSpec(name="later"), on_demand=True),
            status("off", "UNAVAILABLE", reason=UNLOADED),
        ],
    )
    async with calling(create_app(alone, backend)) as client:
        models = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
        [one] = [(await client.get("/v1/models/broken")).json()]
    assert one == models["broken"]
    states = {
        name: tuple(model["headrace"][field] for field in ("state", "progress", "reason"))
        for name, model in models.items()
    }
    assert states == {
        "broken": ("unavailable", 0.0, "the graph has a cycle"),
        "coming": ("loading", 0.4, None),
        "later": ("on_demand", 0.0, None),
        "off": ("unavailable", 0.0, UNLOADED),
    }
    assert {model["task"] for model in models.values()} == {"predict"}


@pytest.mark.parametrize(
    ("found", "http_status", "code", "words"),
    [
        (status("m", "UNAVAILABLE", reason="a cycle"), 503, "model_unavailable", "m cannot be loaded: a cycle"),
        (status("m", "UNAVAILABLE", reason=UNLOADED), 404, "model_not_found", "is not loaded"),
        (status("other", "READY"), 404, "model_not_found", "does not exist"),
    ],
)
async def test_a_request_for_a_model_that_is_not_served_is_refused(
    backend: Backend, alone: Settings, found: ModelStatus, http_status: int, code: str, words: str
) -> None:
    await backend.repository.report("host", [found])
    async with calling(create_app(alone, backend)) as client:
        answer = await client.post("/v1/completions", json={"model": "m", "prompt": "Hello"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (http_status, code)
    assert words in answer.json()["error"]["message"]


async def test_a_repository_is_ready_once_its_models_have_loaded(backend: Backend, alone: Settings) -> None:
    """A model that cannot be loaded is named, and does not delay the others."""
    failed = status("broken", "UNAVAILABLE", reason="a cycle")
    async with calling(create_app(alone, backend)) as client:
        none = await client.get("/ready")
    await backend.repository.report("host", [failed, status("m", "LOADING", progress=0.4)])
    async with calling(create_app(alone, backend)) as client:
        loading = await client.get("/ready")
    await backend.repository.report("host", [failed, status("m", "READY")])
    async with calling(create_app(alone, backend)) as client:
        ready, health = await client.get("/ready"), await client.get("/health")
    assert (none.status_code, none.json()["reason"]) == (503, "no worker serves the model repository")
    assert (loading.status_code, loading.json()["progress"]) == (503, 0.4)
    assert "m is loading, 40% done" in loading.json()["reason"]
    assert (ready.status_code, ready.json()["reasons"]) == (200, [])
    assert (health.json()["status"], health.json()["reasons"][0]["code"]) == ("degraded", "load_failed")
