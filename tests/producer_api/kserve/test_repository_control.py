"""Orders to load and unload models."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from producer_api.app import create_app
from producer_api.auth.principal import ANONYMOUS, Principal
from producer_api.kserve import repository_control
from producer_api.kserve.repository_control import carry_out, load_order, unload_order
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import HeadraceError, InvalidRequest
from shared.repository.spec import EnsembleStep, ModelSpec
from shared.repository.status import ModelStatus, VersionState, VersionStatus
from shared.repository.store import OrderResult
from tests.support.loop_clock import turns
from tests.support.tensor_api import in_memory

TEXT = base64.b64encode(b"weights").decode()


def test_an_order_has_its_config_and_files() -> None:
    order = load_order("m", {"config": "{}", "file:1/model.onnx": TEXT, "file:1/a/b.bin": b"raw"})
    assert (order.model, order.action, order.config) == ("m", "load", "{}")
    assert order.files == {"1/model.onnx": b"weights", "1/a/b.bin": b"raw"}
    assert unload_order("m", dependents=True).unload_dependents


@pytest.mark.parametrize(
    ("reported", "status", "reason"),
    [((), 404, "no worker has a model repository"), (("m",), 503, "no worker has finished")],
)
async def test_an_order_without_an_outcome_is_not_awaited_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: tuple[str, ...], status: int, reason: str
) -> None:
    monkeypatch.setattr(repository_control, "RESULT_LIMIT_S", 0.01)
    settings = in_memory(tmp_path)
    backend = Backend.memory(settings)
    await backend.repository.report("w1", [ModelStatus(name=name, spec=ModelSpec(name=name)) for name in reported])
    context = create_app(settings, backend).state.context
    with pytest.raises(HeadraceError, match=reason) as refusal:
        await carry_out(context, ANONYMOUS, unload_order("m", dependents=False))
    assert refusal.value.status == status
    await context.close()


@pytest.mark.parametrize("models", [None, ["m"], ["m", "part"]])
async def test_an_order_reaches_only_the_models_of_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str] | None
) -> None:
    monkeypatch.setattr(repository_control, "RESULT_LIMIT_S", 0.01)
    settings = in_memory(tmp_path)
    backend = Backend.memory(settings)
    step = EnsembleStep(model_name="part", input_map={}, output_map={})
    await backend.repository.report("w1", [ModelStatus(name="m", spec=ModelSpec(name="m", ensemble=(step,)))])
    context = create_app(settings, backend).state.context
    caller = Principal("t", scopes=Scopes.parse(admin=True, models=models))
    with pytest.raises(HeadraceError) as refusal:
        await carry_out(context, caller, unload_order("m", dependents=True))
    assert refusal.value.status == (403 if models == ["m"] else 503)
    assert len(await backend.repository.orders()) == (0 if models == ["m"] else 1)
    await context.close()


async def test_a_loaded_model_is_awaited_until_none_of_its_versions_is_shown_as_loading(tmp_path: Path) -> None:
    settings = in_memory(tmp_path)
    backend = Backend.memory(settings)
    context = create_app(settings, backend).state.context
    spec = ModelSpec(name="m")

    async def report(first: VersionState) -> None:
        versions = (VersionStatus(version="1", state=first), VersionStatus(version="2", state="READY"))
        await backend.repository.report("w1", [ModelStatus(name="m", spec=spec, versions=versions)])

    await report("LOADING")
    order = load_order("m", {})
    carried_out = asyncio.create_task(carry_out(context, ANONYMOUS, order))
    await backend.repository.answer(OrderResult(id=order.id))
    await turns()
    assert not carried_out.done()
    await report("READY")
    await carried_out
    [shown] = (await context.catalog.repository()).values()
    assert [each.state for each in shown.versions] == ["READY", "READY"]
    await context.close()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a\0", "-a", "x" * 129, "a b", "ä"])
def test_path_tricks_in_names_are_refused(name: str) -> None:
    for order in (lambda: load_order(name, {}), lambda: unload_order(name, dependents=False)):
        with pytest.raises(InvalidRequest) as refusal:
            order()
        assert refusal.value.param == "model"


@pytest.mark.parametrize(
    "path", ["", "1", "1/", "/1/x", "1//x", "1/../x", "1/a/../../x", "../1/x", "1/.", "1/..", "1/a\\..\\b", "1/a\0"]
)
def test_path_tricks_in_files_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="file:"):
        load_order("m", {"config": "{}", f"file:{path}": TEXT})


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": "["},
        {"config": "[]"},
        {"config": 1},
        {"config": b"{}"},
        {"other": "x"},
        {"file:1/x": TEXT},
        {"config": "{}", "file:1/x": "no base64!"},
        {"config": "{}", "file:1/x": 7},
        {"config": "[" * 5000},
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        load_order("m", parameters)
