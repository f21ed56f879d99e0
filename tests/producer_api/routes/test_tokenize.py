"""Tokenizing and detokenizing by a real worker behind a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from producer_api.routes import tokenize
from shared.backend import Backend
from shared.protocol import Detokenize, RequestState
from shared.settings import Settings
from tests.support.chat_tokenizers import save
from tests.support.checkpoints import byte_tokenizer
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness
from workers.engine.text.tokenizer import Tokenizer
from workers.scripted_engine import ScriptedEngine


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


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for d in documents or [] %}{{ d.text }}{% endfor %}"
    "{% if level is defined %}{{ 6 // level }}{% endif %}{% for m in messages %}{{ bos_token + m.role }}:"
    "{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Be"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = byte_tokenizer()
    made.chat_template = TEMPLATE
    return Tokenizer(save(made, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
async def rendered(client: httpx.AsyncClient, backend: Backend, settings: Settings, tokenizer: Tokenizer):
    """Client of a server whose worker has a real chat template."""
    engine = ScriptedEngine()
    engine.tokenizer = tokenizer
    async with Harness(backend, settings).worker(engine):
        yield client


@pytest.mark.parametrize(
    ("fields", "text", "controls"),
    [
        ({"messages": [{"role": "user", "content": "a<eos><bos>b"}]}, "<bos>user:a<eos><bos>b<eos><bos>", 3),
        ({"prompt": "a<eos><bos>b"}, "a<eos><bos>b", 2),
        ({"messages": CHAT, "add_generation_prompt": False}, "<bos>user:hi<eos><bos>assistant:Be<eos>", 4),
        (
            {"messages": CHAT, "add_generation_prompt": False, "continue_final_message": True},
            "<bos>user:hi<eos><bos>assistant:Be",
            3,
        ),
        (
            {"messages": CHAT[:1], "chat_template_kwargs": {"level": 2}, "documents": [{"text": "<eos>"}]},
            "<eos>3<bos>user:hi<eos><bos>",
            3,
        ),
    ],
)
async def test_chats_are_tokenized_as_they_are_answered(
    rendered: httpx.AsyncClient, backend: Backend, fields: dict[str, Any], text: str, controls: int
) -> None:
    """Expect the same number of tokens in an answer's prompt, and no control tokens but those of the template."""
    found = (await rendered.post("/tokenize", json={"model": MODEL, **fields})).json()["tokens"]
    assert (await rendered.post("/detokenize", json={"model": MODEL, "tokens": found})).json() == {"prompt": text}
    assert sum(index in (256, 257) for index in found) == controls
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    answered = (await rendered.post(path, json={"model": MODEL, **fields, "max_tokens": 1, "seed": 1})).json()
    assert answered["usage"]["prompt_tokens"] == len(found)
    assert answered["choices"][0].get("text", "") or answered["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"level": 0}}, "messages"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ],
)
async def test_wrong_template_fields_are_refused_on_every_route(
    rendered: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    body = {"model": MODEL, "messages": CHAT, **fields}
    paths = ["/tokenize", "/v1/chat/completions", *(["/v1/jobs"] if param != "messages" else [])]
    for path in paths:  # a job is accepted before a worker renders its chat
        refused = await rendered.post(path, json=body)
        assert refused.status_code == 400, path
        error = refused.json().get("error", refused.json())
        assert error["param"] == param
