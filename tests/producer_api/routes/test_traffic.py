"""Rules for traffic on the admin port, and the commands of `headrace models` that set them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headrace.cli.main import app as command_line
from producer_api.server import AdminServer, bind
from shared.backend import Backend
from shared.protocol import RequestState
from shared.repository.store import ModelOrder, OrderResult
from shared.repository.traffic.pairs import Agreement, Pair, Side
from shared.repository.traffic.rules import Branch, Shadow, Split, Traffic
from shared.settings import Settings
from tests.support.api_server import administering
from tests.support.fakes import MODEL
from tests.support.tensor_worker import TensorWorker, models
from tests.support.typer_internals import CliRunner

Run = Callable[..., Awaitable[str]]
ALIAS = {"branches": [{"model": MODEL}]}


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with administering(app) as opened:
        yield opened


@pytest.fixture
async def run(app: FastAPI, settings: Settings) -> AsyncIterator[Run]:
    """Run a command of `headrace models` against the admin port, and return its output."""
    with bind(settings.model_copy(update={"admin_port": 0}), "admin_host", "admin_port") as listener:
        server = AdminServer(app.state.context)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def invoke(*command: str, code: int = 0) -> str:
            done = await asyncio.to_thread(CliRunner().invoke, command_line, ["models", *command, "--url", url])
            assert done.exit_code == code, done.output + str(done.exception)
            shown = [line for line in done.stdout.splitlines() if "[info" not in line]  # without the server's log
            return "\n".join(shown) if code == 0 else str(done.exception)

        yield invoke
        server.should_exit = True
        await serving


async def test_rules_are_set_listed_and_removed(admin: httpx.AsyncClient, backend: Backend) -> None:
    made = await admin.post("/admin/models/org/prod/split", json={**ALIAS, "by": "user"})
    assert (made.status_code, made.json()["name"]) == (200, "org/prod")
    assert (
        await admin.post("/admin/models/org/prod/shadow", json={"model": MODEL, "share": 0.5})
    ).status_code == 200
    split = Split(name="org/prod", branches=(Branch(model=MODEL),), by="user")
    shadow = Shadow(name="org/prod", model=MODEL, share=0.5)
    assert await backend.traffic.traffic() == Traffic({"org/prod": split}, {"org/prod": shadow})
    listed = (await admin.get("/admin/traffic")).json()
    assert listed["splits"] == [{"name": "org/prod", "branches": [{"model": MODEL, "weight": 1.0}], "by": "user"}]
    for rule in ("split", "shadow"):
        for removed in (True, False):
            gone = await admin.delete(f"/admin/models/org/prod/{rule}")
            assert gone.json() == {"name": "org/prod", "removed": removed}
    assert await backend.traffic.traffic() == Traffic()


@pytest.mark.parametrize(
    ("rule", "body", "status", "param"),
    [
        ("split", {"branches": []}, 400, "branches"),
        ("split", {"branches": [{"model": MODEL}] * 17}, 400, "branches"),
        ("split", {"branches": [{"model": MODEL, "weight": -1}]}, 400, "branches[0].weight"),
        ("split", {"branches": [{"model": MODEL, "weight": 0}]}, 400, "branches"),
        ("split", {"branches": [{"model": MODEL, "version": "x"}]}, 400, "branches[0].version"),
        ("split", {"branches": [{"model": "../x"}]}, 400, "branches[0].model"),
        ("split", {"branches": [{"model": "unknown"}]}, 404, "branches[0].model"),
        ("split", {**ALIAS, "by": "moon"}, 400, "by"),
        ("shadow", {"model": "unknown"}, 404, "model"),
        ("shadow", {"model": MODEL, "share": 0}, 400, "share"),
        ("shadow", {"share": 1}, 400, "model"),
    ],
)
async def test_wrong_rule_is_refused_by_field(
    admin: httpx.AsyncClient, backend: Backend, rule: str, body: dict[str, Any], status: int, param: str
) -> None:
    refused = await admin.post(f"/admin/models/prod/{rule}", json=body)
    assert (refused.status_code, refused.json().get("param")) == (status, param)
    assert await backend.traffic.traffic() == Traffic()


async def test_alias_cannot_lead_to_an_alias(admin: httpx.AsyncClient) -> None:
    assert (await admin.post("/admin/models/a/split", json=ALIAS)).status_code == 200
    refused = await admin.post("/admin/models/b/split", json={"branches": [{"model": "a"}]})
    assert (refused.status_code, refused.json()["param"]) == (404, "branches[0].model")


async def test_rules_are_not_on_the_apis_port(client: httpx.AsyncClient) -> None:
    assert (await client.get("/admin/traffic")).status_code == 404
    assert (await client.post("/admin/models/prod/split", json=ALIAS)).status_code == 404


async def test_commands_set_and_remove_rules(run: Run, backend: Backend) -> None:
    assert await run("alias", "prod", f"{MODEL}@2") == "prod: split is set"
    await run("split", "canary", f"{MODEL}=9", f"{MODEL}@3=1", "--by", "tenant")
    made = json.loads(await run("shadow", "prod", MODEL, "--share", "0.25", "--json"))
    assert made == {"name": "prod", "model": MODEL, "share": 0.25}
    canary = (Branch(model=MODEL, weight=9), Branch(model=MODEL, version="3"))
    assert await backend.traffic.traffic() == Traffic(
        {
            "prod": Split(name="prod", branches=(Branch(model=MODEL, version="2"),)),
            "canary": Split(name="canary", branches=canary, by="tenant"),
        },
        {"prod": Shadow(name="prod", model=MODEL, share=0.25)},
    )
    assert await run("alias", "prod", "--remove") == "prod: removed"
    assert await run("alias", "prod", "--remove") == "prod: there was no split"
    assert "a branch must be" in await run("split", "prod", MODEL, code=1)
    assert "either a model or --remove" in await run("alias", "prod", code=1)


async def test_compare_shows_agreement_and_latencies(run: Run, backend: Backend) -> None:
    assert "0 pairs" in await run("compare", "prod")
    pair = Pair(
        at=1.0,
        original=Side(model="m", state=RequestState.COMPLETED, run_s=0.5),
        shadow=Side(model="n", state=RequestState.COMPLETED, run_s=0.25),
        agreement=Agreement(False, 0.125, True),
    )
    await backend.traffic.add_pair("prod", pair)
    shown = await run("compare", "prod")
    for expected in (
        "1 pairs, 1 compared",
        "same output: 0.0%, same label: 100.0%",
        "0.125",
        "500.0 ms",
        "250.0 ms",
    ):
        assert expected in shown
    assert json.loads(await run("compare", "prod", "--json"))["shadow_latency"] == {"median": 0.25, "p95": 0.25}


async def test_models_are_listed_with_their_versions(run: Run, backend: Backend) -> None:
    await TensorWorker(backend, models()).announce()
    found = {model["name"]: model for model in json.loads(await run("list", "--json"))}
    assert [version["version"] for version in found["add_sub"]["versions"]] == ["1", "3"]
    [version] = found["repeat"]["versions"]
    assert (version["state"], version["progress"], version["requests"]) == ("READY", 1.0, 3)
    assert version["memory_bytes"] == 1024
    assert found[MODEL]["versions"][0]["state"] == "READY"
    assert "add_sub" in await run("list")


async def test_orders_are_placed_and_awaited(run: Run, backend: Backend) -> None:
    async def carry_out(error: str) -> ModelOrder:
        while not (found := [each for each in await backend.repository.orders() if each.id not in seen]):
            await asyncio.sleep(0.01)
        [order] = found
        seen.add(order.id)
        await backend.repository.answer(OrderResult(id=order.id, error=error))
        return order

    await TensorWorker(backend, models()).announce()
    seen: set[str] = set()
    loaded, order = await asyncio.gather(run("load", "iris"), carry_out(""))
    assert (loaded, order.model, order.action) == ("iris is loaded", "iris", "load")
    done, order = await asyncio.gather(run("unload", "iris", "--dependents", "--json"), carry_out(""))
    assert (json.loads(done)["action"], order.action, order.unload_dependents) == ("unload", "unload", True)
    failed, _ = await asyncio.gather(run("load", "iris", code=1), carry_out("no such file"))
    assert "no such file" in failed


def test_add_copies_a_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    command = ["models", "add", str(tmp_path / "net.onnx"), "m", "--repository", str(tmp_path / "root"), "--json"]
    done = CliRunner().invoke(command_line, command)
    assert json.loads(done.stdout) == {"model": "m", "version": "1", "backend": "onnxruntime"}
    assert (tmp_path / "root/m/1/model.onnx").read_bytes() == b"x"


async def test_inference_may_name_an_alias(client: httpx.AsyncClient, backend: Backend) -> None:
    """Given an alias of a version, the answer has the alias as its name, and that version."""
    worker = TensorWorker(backend, models())
    await worker.announce()
    await backend.traffic.set_split(Split(name="prod", branches=(Branch(model="add_sub", version="1"),)))
    serving = asyncio.create_task(worker.serve("add_sub"))
    tensor = {"shape": [2], "datatype": "INT32", "data": [1, 2]}
    body = {"inputs": [{"name": f"INPUT{i}", **tensor} for i in range(2)]}
    try:
        assert (await client.get("/v2/models/prod")).json()["versions"] == ["1", "3"]
        for path, version in (("prod", "1"), ("prod/versions/3", "3")):
            answer = (await client.post(f"/v2/models/{path}/infer", json=body)).json()
            assert (answer["model_name"], answer["model_version"]) == ("prod", version)
            assert answer["outputs"][0]["data"] == [2, 4]
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
