"""Tokenizing and detokenizing by a real worker behind a real server."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from producer_api.routes import tokenize
from shared.backend import Backend
from shared.protocol import Detokenize, RequestState
from shared.settings import Settings
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness


@pytest.fixture
async def served(client: httpx.AsyncClient, backend: Backend, settings: Settings):
    async with Harness(backend, settings).worker():
        yield client


async def test_detokenize_restores_the_text(served: httpx.AsyncClient) -> None:
    found = (await served.post("/tokenize", json={"model": MODEL, "prompt": "né"})).json()
    assert found == {"count": 2, "max_model_len": 8192, "tokens": [110, 233], "token_strs": None}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
    chat = (await served.post("/tokenize", json=asked)).json()
    assert "".join(chat["token_strs"]) == "user:hi\n"
    assert chat["count"] == len(chat["tokens"]) == 8
    back = await served.post("/detokenize", json={"model": MODEL, "tokens": found["tokens"]})
    assert back.json() == {"prompt": "né"}
    assert back.headers["x-request-id"]


async def test_a_client_that_knows_one_model_names_none(served: httpx.AsyncClient) -> None:
    """lm-eval's remote tokenizer is one."""
    info = (await served.get("/tokenizer_info")).json()
    assert info == {"tokenizer_class": "ScriptedTokenizer", "eos_token": None}
    found = (await served.post("/tokenize", json={"prompt": "né", "add_special_tokens": False})).json()
    assert (await served.post("/detokenize", json={"tokens": found["tokens"]})).json() == {"prompt": "né"}
    assert (await served.get("/tokenizer_info", params={"model": MODEL})).json() == info
    unknown = await served.get("/tokenizer_info", params={"model": "other"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "messages"),
        ("/tokenize", {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": ""}, "prompt"),
        ("/detokenize", {"tokens": []}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [49_999, 50_000]}, "tokens"),
    ],
)
async def test_wrong_fields_are_named(served: httpx.AsyncClient, path: str, fields: dict, param: str) -> None:
    refused = await served.post(path, json={"model": MODEL, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_a_slow_worker_is_a_504(
    client: httpx.AsyncClient, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "TIMEOUT_S", 0.05)
    asked = asyncio.create_task(client.post("/detokenize", json={"model": MODEL, "tokens": [1]}))
    delivery = await worker.pull()
    assert delivery.request.work == Detokenize()
    async with asyncio.timeout(LIMIT_S):
        while await backend.token_log.acquire([delivery.request.id], "w1") != [None]:
            pass
    assert (await asked).status_code == 504
    record = await backend.token_log.record(delivery.request.id)
    assert record is not None and record.state is RequestState.FAILED
