"""TGI's API answered by a tiny model with a context of 64 tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from producer_api.app import create_app
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import calling
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import load
from tests.support.worker_harness import Harness
from workers.engine.engine import Engine

TINY, CONTEXT = "tiny", 64


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"]), max_model_len=CONTEXT)


@pytest.fixture
async def http(settings: Settings, backend: Backend, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings.model_copy(update={"served_model_name": TINY})
    app = create_app(settings, backend)
    async with Harness(backend, settings).worker(engine, "t", TINY), calling(app) as opened:
        yield opened
    await app.state.context.close()


async def ask(http: httpx.AsyncClient, inputs: str = "a mill", **parameters: Any) -> dict[str, Any]:
    answer = await http.post(
        "/generate", json={"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_details_agree_with_the_text_and_the_prompt(http: httpx.AsyncClient) -> None:
    found = await ask(http, details=True, decoder_input_details=True, top_n_tokens=2)
    details = found["details"]
    tokens = details["tokens"]
    assert "".join(each["text"] for each in tokens if not each["special"]) == found["generated_text"]
    assert [top[0]["id"] for top in details["top_tokens"]] == [each["id"] for each in tokens], "greedy"
    assert [top[0]["logprob"] for top in details["top_tokens"]] == [each["logprob"] for each in tokens]
    prefill = details["prefill"]
    assert "".join(each["text"] for each in prefill) == "a mill"
    assert prefill[0]["logprob"] is None
    assert all(each["logprob"] < 0 for each in prefill[1:])
    spans = (await http.post("/tokenize", json={"inputs": "a mill"})).json()
    assert [each["id"] for each in spans] == [each["id"] for each in prefill]
    assert (details["seed"], details["generated_tokens"]) == (None, len(tokens))


async def test_a_seed_repeats_a_typical_answer(http: httpx.AsyncClient) -> None:
    drawn = [await ask(http, typical_p=0.7, seed=seed, details=True) for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0]["details"]["seed"] == 5
    plain = await ask(http, do_sample=True, seed=5)
    assert plain["generated_text"] != drawn[0]["generated_text"]


async def test_only_the_end_of_a_truncated_prompt_counts(http: httpx.AsyncClient) -> None:
    whole = await ask(http, "a mill by the river", truncate=6)
    assert whole == await ask(http, " river")


async def test_a_stop_sequence_ends_the_text_and_is_in_it(http: httpx.AsyncClient) -> None:
    free = await ask(http, details=True)
    text = free["generated_text"]
    found = await ask(http, stop=["never", text[1]], details=True)
    assert found["details"]["finish_reason"] == "stop_sequence"
    assert found["generated_text"] == text[: text.index(text[1]) + 1]


async def test_grammars_hold(http: httpx.AsyncClient) -> None:
    digits = await ask(http, grammar={"type": "regex", "value": "[0-9]{3}"}, details=True)
    assert digits["generated_text"].isdigit()
    assert digits["details"]["finish_reason"] == "eos_token"
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for grammar in ({"type": "json", "value": schema}, {"type": "json_schema", "value": {"schema": schema}}):
        found = await ask(http, grammar=grammar, max_new_tokens=32)
        assert json.loads(found["generated_text"])["a"] in (1, 2)


async def test_the_stream_is_the_answer_in_parts(http: httpx.AsyncClient) -> None:
    parameters = {"max_new_tokens": 8, "details": True}
    whole = await ask(http, details=True)
    streamed = await http.post("/generate_stream", json={"inputs": "a mill", "parameters": parameters})
    chunks = [
        json.loads(line.removeprefix("data: ")) for line in streamed.text.splitlines() if line.startswith("data")
    ]
    assert [each["token"] for each in chunks] == whole["details"]["tokens"]
    assert [each["index"] for each in chunks] == list(range(1, 9))
    assert chunks[-1]["generated_text"] == whole["generated_text"]
    assert chunks[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 8,
        "seed": None,
        "input_length": len("a mill"),
    }


async def test_max_total_tokens_bounds_every_api(settings: Settings, backend: Backend, engine: Engine) -> None:
    settings = settings.model_copy(
        update={"served_model_name": TINY, "max_total_tokens": 20, "max_input_length": 10}
    )
    app = create_app(settings, backend)
    async with Harness(backend, settings).worker(engine, "t", TINY), calling(app) as http:
        free = {"model": TINY, "prompt": "a mill", "ignore_eos": True}
        longest = (await http.post("/v1/jobs", json=free)).json()["id"]
        async with http.stream("GET", f"/v1/jobs/{longest}/events") as events:
            async for _ in events.aiter_lines():
                pass
        usage = (await http.get(f"/v1/jobs/{longest}")).json()["usage"]
        assert usage["total_tokens"] == 20
        refused = await http.post("/v1/completions", json={**free, "max_tokens": 15})
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert "must have at most 20 tokens together, got 6 and 15" in refused.json()["error"]["message"]
        chat = {"model": TINY, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        refused = await http.post("/v1/chat/completions", json=chat)
        assert "messages must have at most 10 tokens" in refused.json()["error"]["message"]
    await app.state.context.close()
