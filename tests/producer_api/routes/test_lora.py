"""LoRA adapters over HTTP: loaded, chosen by `model`, replaced and unloaded, with a worker of a tiny model."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from headrace.client.verification import compare
from shared.adapters.adapter import Adapter
from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from shared.protocol import Recording, SamplingParams
from shared.settings import Settings
from tests.support.adapters import edit_adapter, save_adapter
from tests.support.api_server import serving
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import drain, load
from tests.support.fakes import answer, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness, answer_tokens, wait_for_tokens, wait_until
from workers.engine.engine import Engine
from workers.engine.interface import EngineOutput, EngineRequest
from workers.lora.service import MAX_READS
from workers.scripted_engine import ScriptedEngine
from workers.worker import Worker

TINY = "tiny"
PROMPT = "a river runs to the mill"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def engine(checkpoint: Path, folder: Path) -> Engine:
    return load(checkpoint, lora_dir=folder)


@pytest.fixture(scope="module")
def alone(checkpoint: Path, folder: Path) -> Engine:
    return load(checkpoint, lora_dir=folder)


@pytest.fixture
def adapters(checkpoint: Path, folder: Path) -> Path:
    shutil.rmtree(folder)
    for seed, name in enumerate("ab"):
        save_adapter(folder / name, checkpoint, seed=seed)
    return folder


@pytest.fixture
def settings(settings: Settings, folder: Path) -> Settings:
    given = {"served_model_name": TINY, "lora_dir": folder, "runtime_lora_updating": True, "max_loras": 1}
    return settings.model_copy(update=given)


@pytest.fixture
async def worker(settings: Settings, backend: Backend, engine: Engine) -> AsyncIterator[Worker]:
    async with Harness(backend, settings, fingerprinted=True).worker(engine, "t", TINY) as running:
        yield running


@pytest.fixture
async def http(
    settings: Settings, backend: Backend, adapters: Path, worker: Worker
) -> AsyncIterator[httpx.AsyncClient]:
    await backend.registry.beat(worker._heartbeat())
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


async def put(http: httpx.AsyncClient, name: str, path: str | None = None, **fields: Any) -> httpx.Response:
    return await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path or name, **fields})


async def drop(http: httpx.AsyncClient, name: str) -> httpx.Response:
    return await http.post("/v1/unload_lora_adapter", json={"lora_name": name})


async def complete(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def expected(alone: Engine, name: str | None) -> list[int]:
    """Return the greedy answer of an engine that computes nothing else."""
    assert alone.adapters is not None
    weights = None if name is None else alone.adapters.load(name)
    alone.add(EngineRequest("1", tuple(alone.tokenizer.encode(PROMPT)), GREEDY, adapter=weights))
    return drain(alone).ids("1")


def ids_of(found: dict[str, Any]) -> list[int]:
    ids: list[int] = found["choices"][0]["token_ids"]
    return ids


async def models(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in (await http.get("/v1/models")).json()["data"]}


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


async def test_a_replaced_adapter_answers_at_once(http: httpx.AsyncClient, alone: Engine, folder: Path) -> None:
    """Given the same folder with other contents, and blocks of its prompt in the cache."""
    await put(http, "a")
    before = await complete(http, "a")
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    assert (await put(http, "a", load_inplace=True)).status_code == 200
    after = await complete(http, "a")
    assert ids_of(after) == expected(alone, "b") != ids_of(before)
    assert after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert after["system_fingerprint"] != before["system_fingerprint"]


async def test_every_api_takes_the_name_of_an_adapter(http: httpx.AsyncClient) -> None:
    await put(http, "sql", "a")
    chat = {"model": "sql", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    assert (await http.post("/v1/chat/completions", json=chat)).json()["model"] == "sql"
    streamed = await http.post("/v1/chat/completions", json={**chat, "stream": True})
    assert '"model":"sql"' in streamed.text
    made = await http.post("/v1/responses", json={"model": "sql", "input": "hi", "max_output_tokens": 4})
    assert made.json()["model"] == "sql"
    several = {"model": "sql", "prompt": ["a", "b"], "max_tokens": 2}
    assert len((await http.post("/v1/completions", json=several)).json()["choices"]) == 2
    job = (await http.post("/v1/jobs", json={"model": "sql", "prompt": "x", "max_tokens": 3})).json()
    assert job["model"] == "sql"
    assert (await http.get(f"/v1/jobs/{job['id']}")).json()["model"] == "sql"
    tokens = await http.post("/tokenize", json={"model": "sql", "prompt": "abc"})
    assert tokens.json()["count"] == 3


async def test_a_recording_names_the_adapter_and_its_contents(
    http: httpx.AsyncClient, backend: Backend, folder: Path
) -> None:
    await put(http, "a")
    job = (await complete(http, "a"))["id"].replace("cmpl-", "req_")
    shown = (await http.get(f"/v1/jobs/{job}/recording")).json()
    assert (shown["model"], shown["request"]["model"]) == ("a", "a")
    assert "adapter" not in shown["request"]
    repeated = {"request": shown["request"], "prompt_token_ids": shown["prompt_token_ids"]}
    second = (await http.post("/v1/recordings", json=repeated)).json()["id"]
    await answer(backend, second)
    computed = (await http.get(f"/v1/jobs/{second}/recording")).json()
    assert compare(shown, computed).same
    other = {**computed, "computation": computed["computation"] | {"adapter": "0" * 64}}
    assert compare(shown, other).reasons[0].startswith("adapter: ")
    forged = {**shown["request"], "model": TINY, "adapter": {"name": "a", "path": "b", "digest": "x"}}
    body = {"request": forged, "prompt_token_ids": shown["prompt_token_ids"]}
    again = (await http.post("/v1/recordings", json=body)).json()
    record = await backend.token_log.record(again["id"])
    assert record is not None
    assert (record.model, record.adapter) == (TINY, None)
    kept = await backend.token_log.recording(job)
    assert isinstance(kept, Recording)
    assert kept.computation["adapter"] == (await backend.adapters.known())["a"].digest


async def test_a_waiting_request_of_an_unloaded_adapter_ends_alone(
    http: httpx.AsyncClient, backend: Backend, alone: Engine, folder: Path
) -> None:
    """One whose files have changed ends, too; one that has begun finishes."""
    await put(http, "a")
    await put(http, "b")
    known = await backend.adapters.known()

    async def end(name: str, **changes: Any) -> str:
        request = msgspec.structs.replace(
            make_request(PROMPT), model=TINY, params=GREEDY, adapter=known[name].ref, **changes
        )
        await submit(backend, request)
        terminal = (await answer(backend, request.id))[-1].terminal
        assert terminal is not None
        return terminal.error.code if terminal.error else ""

    await drop(http, "a")
    edit_adapter(folder / "b", lora_alpha=1)
    await put(http, "c", "b")  # takes the place of b in the memory
    await complete(http, "c")
    assert await asyncio.gather(end("a"), end("b"), end("a")) == [
        "model_not_found",
        "model_unavailable",
        "model_not_found",
    ]
    assert ids_of(await complete(http, TINY)) == expected(alone, None)


async def test_an_answer_continues_on_another_worker_though_its_adapter_was_unloaded(
    settings: Settings,
    backend: Backend,
    engine: Engine,
    alone: Engine,
    adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a worker that is stopped in the middle of the answer."""
    wanted, gate, step, steps = expected(alone, "a"), threading.Event(), engine.step, itertools.count()

    def gated() -> list[EngineOutput]:
        if next(steps) >= 5 and not gate.wait(0.005):
            return []
        return step()

    monkeypatch.setattr(engine, "step", gated)
    harness = Harness(backend, settings)
    async with harness.worker(engine, "first", TINY) as first:
        await first.adapters.declare({"sql": "a"})
        ref = (await backend.adapters.known())["sql"].ref
        request = msgspec.structs.replace(make_request(PROMPT), model=TINY, params=GREEDY, adapter=ref)
        await submit(backend, request)
        await wait_for_tokens(backend, request, 3)
        await backend.adapters.remove("sql")
        first.drain(0)
    async with harness.worker(alone, "second", TINY):
        events = await answer(backend, request.id)
    assert answer_tokens(events) == wanted
    assert next(steps) < len(wanted)


async def test_a_fault_of_the_reader_is_an_answer(
    http: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.adapters, "load", fault)
    refused = await put(http, "a")
    assert (refused.status_code, "failed to read" in refused.json()["error"]["message"]) == (400, True)


async def test_two_replicas_and_two_workers_agree(
    http: httpx.AsyncClient, settings: Settings, backend: Backend, alone: Engine
) -> None:
    wanted = expected(alone, "a")
    other = Backend.open(settings)
    await other.start()
    async with (
        Harness(other, settings, fingerprinted=True).worker(alone, "u", TINY) as second,
        serving(settings, other) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as replica,
    ):
        await other.registry.beat(second._heartbeat())
        both = await asyncio.gather(put(http, "sql", "a"), put(replica, "sql", "a"))
        assert sorted(each.status_code for each in both) == [200, 400]
        for client in (http, replica, http, replica):
            assert ids_of(await complete(client, "sql")) == wanted
        assert (await drop(replica, "sql")).status_code == 200
        gone = await asyncio.gather(
            *(client.post("/v1/completions", json={"model": "sql", "prompt": "x"}) for client in (replica, http))
        )
        assert [each.status_code for each in gone] == [404, 404]
        assert (await put(http, "b")).status_code == 200
        assert (await complete(replica, "b"))["model"] == "b"
    await other.close()


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


async def test_a_request_that_waits_for_room_can_be_cancelled(
    http: httpx.AsyncClient, backend: Backend, worker: Worker
) -> None:
    """Given a run that keeps the only adapter in memory; a request that is cancelled stops waiting."""
    await put(http, "a")
    await put(http, "b")
    waiting, known = worker.adapters.residents, await backend.adapters.known()
    await waiting.acquire("other", known["a"].ref, 0)
    job = (await http.post("/v1/jobs", json={"model": "b", "prompt": "x", "max_tokens": 3})).json()["id"]
    await wait_until(lambda: waiting.waiting() == {"b"})
    assert (await http.delete(f"/v1/jobs/{job}")).status_code == 200
    await wait_until(lambda: not waiting.waiting())
    waiting.release("other")
    assert (await complete(http, "b"))["model"] == "b"


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
