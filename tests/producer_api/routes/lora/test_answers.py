"""Answers of LoRA adapters that are chosen by `model`, replaced and unloaded."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from headrace.client.verification import compare
from shared.backend import Backend
from shared.protocol import Recording
from shared.settings import Settings
from tests.support.adapters import edit_adapter
from tests.support.api_server import serving
from tests.support.fakes import answer, make_request, submit
from tests.support.lora_api import GREEDY, PROMPT, TINY, complete, drop, expected, ids_of, models, put
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness, answer_tokens, wait_for_tokens, wait_until
from workers.engine.engine import Engine
from workers.engine.interface import EngineOutput
from workers.worker import Worker


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
    wanted, never, step, steps = expected(alone, "a"), threading.Event(), engine.step, iter(range(5))
    assert len(wanted) > 5

    def first_steps() -> list[EngineOutput]:
        if next(steps, None) is None and not never.wait(0.005):
            return []
        return step()

    monkeypatch.setattr(engine, "step", first_steps)
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


async def until_listed(client: httpx.AsyncClient, name: str) -> None:
    """Wait until a replica knows an adapter; it reads the registry at most once a second."""
    async with asyncio.timeout(LIMIT_S):
        while name not in await models(client):
            await asyncio.sleep(0.01)


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
        for client in (http, replica):
            await until_listed(client, "sql")
        for client in (http, replica, http, replica):
            assert ids_of(await complete(client, "sql")) == wanted
        assert (await drop(replica, "sql")).status_code == 200
        gone = await asyncio.gather(
            *(client.post("/v1/completions", json={"model": "sql", "prompt": "x"}) for client in (replica, http))
        )
        assert [each.status_code for each in gone] == [404, 404]
        assert (await put(http, "b")).status_code == 200
        await until_listed(replica, "b")
        assert (await complete(replica, "b"))["model"] == "b"
    await other.close()


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
