"""LoRA adapters loaded and unloaded over HTTP, and the refusals."""

from __future__ import annotations

import asyncio
import itertools
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from shared.adapters.adapter import Adapter
from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from shared.settings import Settings
from tests.support.adapters import edit_adapter
from tests.support.api_server import serving
from tests.support.fakes import answer, make_request, submit
from tests.support.lora_api import TINY, complete, drop, expected, ids_of, models, put
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness, wait_until
from workers.engine.engine import Engine
from workers.lora.service import MAX_READS
from workers.scripted_engine import ScriptedEngine
from workers.worker import Worker


async def test_adapters_are_loaded_chosen_and_unloaded(http: httpx.AsyncClient, alone: Engine) -> None:
    """Given a worker with room for one adapter, they take turns in its memory."""
    first = await put(http, "sql", "a")
    assert (first.status_code, first.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert (await put(http, "b")).status_code == 200
    listed = await models(http)
    assert list(listed) == [TINY, "b", "sql"]
    assert (listed[TINY]["root"], listed[TINY]["parent"]) == (TINY, None)
    assert (listed["sql"]["root"], listed["sql"]["parent"]) == ("a", TINY)
    assert listed["sql"]["max_model_len"] == listed[TINY]["max_model_len"]
    assert listed["sql"]["headrace"]["state"] == "ready"
    assert (await http.get("/v1/models/sql")).json()["parent"] == TINY
    answers = await asyncio.gather(*(complete(http, name) for name in (TINY, "sql", "b", "sql")))
    assert [ids_of(each) for each in answers] == [expected(alone, name) for name in (None, "a", "b", "a")]
    assert [each["model"] for each in answers] == [TINY, "sql", "b", "sql"]
    prints = [each["system_fingerprint"] for each in answers]
    assert prints[1] == prints[3]
    assert len(set(prints)) == 3
    gone = await drop(http, "sql")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert "sql" not in await models(http)
    missing = await http.post("/v1/completions", json={"model": "sql", "prompt": "x"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_refusals_have_the_status_and_words_of_vllm(http: httpx.AsyncClient, folder: Path) -> None:
    assert (await put(http, "a")).status_code == 200
    again = await put(http, "a", "b")
    assert again.status_code == 400
    assert "has already been loaded" in again.json()["error"]["message"]
    absent = await drop(http, "x")
    assert (absent.status_code, absent.json()["error"]["type"]) == (404, "not_found_error")
    assert absent.json()["error"]["message"] == "The lora adapter 'x' cannot be found."
    missing = await put(http, "x", "nowhere")
    assert missing.status_code == 404
    assert "No adapter found" in missing.json()["error"]["message"]
    edit_adapter(folder / "b", r=2)
    cases = {
        ("x", "b"): "has shape",
        ("x", "/etc"): "is not in lora_dir",
        ("x", "../lora"): "must not have '..'",
        (TINY, "a"): "is the name of a model",
        ("a b", "a"): "lora_name must match",
    }
    for (name, path), reason in cases.items():
        refused = await put(http, name, path)
        assert (refused.status_code, reason in refused.json()["error"]["message"]) == (400, True), refused.text
    assert (await put(http, "x", "a", base_model_name="y")).status_code == 404
    assert (await http.post("/v1/load_lora_adapter", json={"lora_name": "x"})).status_code == 400
    assert set(await models(http)) == {TINY, "a"}


async def test_a_fault_of_the_reader_is_an_answer(
    http: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.adapters, "load", fault)
    refused = await put(http, "a")
    assert (refused.status_code, "failed to read" in refused.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("lost", ["place", "register", "answer", "result"])
async def test_a_load_survives_an_outage_of_redis(
    http: httpx.AsyncClient, backend: Backend, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Given a Redis that is away for one call, though it may have carried the call out."""
    call, calls = getattr(backend.adapters, lost), itertools.count()

    async def failing(*args: Any, **given: Any) -> Any:
        if next(calls):
            return await call(*args, **given)
        if lost == "register":  # the reply is lost
            await call(*args, **given)
        raise Unavailable("Redis is away")

    monkeypatch.setattr(backend.adapters, lost, failing)
    assert (await put(http, "sql", "a")).status_code == 200
    assert next(calls) > 1
    assert "sql" in await models(http)
    assert "already been loaded" in (await put(http, "sql", "a")).json()["error"]["message"]


async def test_few_adapters_are_checked_at_once(
    http: httpx.AsyncClient, engine: Engine, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.adapters is not None
    begun, gate, load_adapter = [], threading.Event(), engine.adapters.load

    def gated(path: str) -> object:
        begun.append(path)
        assert gate.wait(LIMIT_S)
        return load_adapter(path)

    monkeypatch.setattr(engine.adapters, "load", gated)
    calls = [asyncio.create_task(put(http, f"a{number}", "a")) for number in range(5)]
    await wait_until(lambda: len(worker.adapters._orders) == 5 and len(begun) == MAX_READS)
    gate.set()
    assert [each.status_code for each in await asyncio.gather(*calls)] == [200] * 5


async def test_loading_is_off_unless_it_is_allowed(settings: Settings, backend: Backend) -> None:
    for given in ({"runtime_lora_updating": False}, {"lora_dir": None}):
        async with (
            serving(settings.model_copy(update=given), backend) as url,
            httpx.AsyncClient(base_url=url, timeout=60) as client,
        ):
            assert (await put(client, "a")).status_code == 404
            assert (await drop(client, "a")).status_code == 404


async def test_a_worker_registers_the_adapters_of_its_settings(
    worker: Worker, backend: Backend, adapters: Path
) -> None:
    await worker.adapters.declare({"sql": "a"})
    await worker.adapters.declare({"sql": "b"})
    found = await backend.adapters.known()
    assert [(each.name, each.base, each.path) for each in found.values()] == [("sql", TINY, "b")]
    with pytest.raises(ConfigError, match="lora_modules: x: No adapter found"):
        await worker.adapters.declare({"x": "nowhere"})


async def test_an_engine_without_adapters_refuses_them(settings: Settings, backend: Backend) -> None:
    adapter = Adapter(name="a", base=TINY, path="a", digest="d", rank=1, created=1)
    await backend.adapters.register(adapter, replace=False)
    request = msgspec.structs.replace(make_request(), model=TINY, adapter=adapter.ref)
    async with Harness(backend, settings).worker(ScriptedEngine(), "s", TINY) as worker:
        await backend.registry.beat(worker._heartbeat())
        await submit(backend, request)
        terminal = (await answer(backend, request.id))[-1].terminal
        assert terminal is not None
        assert terminal.error is not None
        assert terminal.error.code == "invalid_request"
        async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert "computes no adapters" in (await put(client, "b")).text
