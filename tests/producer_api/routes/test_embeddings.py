"""Embeddings through OpenAI's package: a real model, worker and server."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import AsyncInferenceClient
from openai import AsyncOpenAI

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Embed, RequestState, Result, Terminal, TokenEvent, Usage
from shared.queue.interface import Room
from shared.settings import Settings
from tests.support.api_server import chat
from tests.support.fakes import MODEL, lapse
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine

QUEUES = ("redis",)
EMBEDDER = "minilm"
PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def engine(minilm: Path) -> EncoderEngine:
    return EncoderEngine.load(EngineConfig(minilm))


@pytest.fixture
async def sdk(api: str, backend: Backend, settings: Settings, engine: EncoderEngine) -> AsyncIterator[AsyncOpenAI]:
    """With a worker that embeds, and one beside it that answers in text."""
    async with (
        Harness(backend, settings).worker(engine, "embedder", EMBEDDER),
        AsyncOpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0) as opened,
    ):
        while EMBEDDER not in [each.name for each in await backend.registry.models()]:
            await asyncio.sleep(0)
        yield opened


async def test_all_input_and_output_formats_give_one_vector(sdk: AsyncOpenAI, engine: EncoderEngine) -> None:
    ids = engine.tokenizer.encode("a mill wheel")
    found = []
    for given in ("a mill wheel", ["a mill wheel"], ids, [ids]):
        for form in ("float", "base64", None):
            extra = {} if form is None else {"encoding_format": form}
            answer = await sdk.embeddings.create(model=EMBEDDER, input=given, **extra)
            assert (answer.object, answer.model) == ("list", EMBEDDER)
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(ids) == 5
            [only] = answer.data
            assert (only.index, only.object) == (0, "embedding")
            vector = only.embedding
            if form == "base64":
                vector = list(struct.unpack("<384f", base64.b64decode(vector)))
            found.append(vector)
    assert all(vector == found[0] for vector in found)
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-6)


async def test_many_inputs_are_split_and_keep_their_order(sdk: AsyncOpenAI, backend: Backend) -> None:
    texts = [f"mill number {number}" for number in range(70)]
    answer = await sdk.embeddings.create(model=EMBEDDER, input=texts, dimensions=16)
    assert [each.index for each in answer.data] == list(range(70))
    assert {len(each.embedding) for each in answer.data} == {16}
    for index in (0, 33, 69):
        alone = await sdk.embeddings.create(model=EMBEDDER, input=texts[index], dimensions=16)
        assert alone.data[0].embedding == answer.data[index].embedding
    assert answer.usage.prompt_tokens == sum([5 + (number > 99) for number in range(70)])


async def test_token_ids_of_tokenize_give_the_same_vector(sdk: AsyncOpenAI, api: str) -> None:
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        found = (await http.post("/tokenize", json={"model": EMBEDDER, "prompt": "A mill"})).json()
        back = await http.post("/detokenize", json={"model": EMBEDDER, "tokens": found["tokens"]})
    assert (found["count"], found["max_model_len"]) == (4, 256)
    assert back.json()["prompt"] == "[CLS] a mill [SEP]"
    by_tokens = await sdk.embeddings.create(model=EMBEDDER, input=found["tokens"])
    by_text = await sdk.embeddings.create(model=EMBEDDER, input="A mill")
    assert by_tokens.data[0].embedding == by_text.data[0].embedding


async def test_the_nearest_text_has_the_same_meaning(sdk: AsyncOpenAI) -> None:
    texts = ["The wheel turns in the river.", "Water drives the mill.", "The court adjourned until Monday."]
    answer = await sdk.embeddings.create(model=EMBEDDER, input=texts)
    first, near, far = (np.array(each.embedding) for each in answer.data)
    assert first @ near > first @ far + 0.1


async def test_invalid_inputs_raise_the_sdks_errors(sdk: AsyncOpenAI) -> None:
    """Nothing is truncated silently."""
    for fields, code, param in (
        ({"input": "a " * 300}, "context_length_exceeded", "input"),
        ({"input": ["x", ""]}, "invalid_request", "input"),
        ({"input": []}, "invalid_request", "input"),
        ({"input": ["x"] * 2049}, "invalid_request", "input"),
        ({"input": [30_522]}, "invalid_request", "input"),
        ({"input": "x", "dimensions": 385}, "invalid_request", "dimensions"),
        ({"input": "x", "dimensions": 0}, "invalid_request", "dimensions"),
        ({"input": "x", "dimensions": 10**400}, "invalid_request", "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "invalid_request", "encoding_format"),
        ({"input": "x", "model": MODEL}, "invalid_request", "model"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.embeddings.create(**{"model": EMBEDDER, **fields})
        assert (caught.value.code, caught.value.param) == (code, param)
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(model=EMBEDDER, messages=chat()["messages"])
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        await sdk.embeddings.create(model="absent", input="x")


async def test_models_have_their_task(sdk: AsyncOpenAI) -> None:
    listed = {model.id: model.model_extra async for model in sdk.models.list()}
    assert {name: extra["task"] for name, extra in listed.items()} == {EMBEDDER: "embed", MODEL: "generate"}
    assert listed[EMBEDDER]["max_model_len"] == 256


async def test_another_worker_takes_over_a_lost_request(
    api: str, backend: Backend, worker: ScriptedWorker, settings: Settings, engine: EncoderEngine
) -> None:
    info = WorkerInfo(id="w", pid=1, model=EMBEDDER, state="ready", max_model_len=256, task="embed")
    await backend.registry.beat(info)
    body, headers = {"model": EMBEDDER, "input": ["x", "y"]}, {"idempotency-key": "k"}
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        asked = asyncio.create_task(http.post(PATH, json=body, headers=headers))
        taken = []
        while not taken:
            taken = (await backend.transport.pull(EMBEDDER, "w", Room.all(1))).found
        request = taken[0].request
        assert request.work == Embed(("x", "y"))
        assert await backend.token_log.acquire([request.id], "w") != [None]
        await lapse(backend, EMBEDDER)
        async with Harness(backend, settings).worker(engine, "other", EMBEDDER):
            answer = await asked
            again = await http.post(PATH, json=body, headers=headers)
    assert answer.status_code == again.status_code == 200
    assert answer.content == again.content
    assert again.headers["idempotent-replayed"] == "true"
    told = [event async for event in backend.token_log.follow(request.id, idle=LIMIT_S) if event is not None]
    assert [(event.seq, event.tokens) for event in told] == [(0, ())]


def test_a_result_survives_encoding() -> None:
    from shared.protocol import decode_event, encode

    result = Result(vectors=(b"\x00\xff\x80?", b""), tokens=(1,), pieces=("a",), text="é")
    event = TokenEvent(0, (), Terminal(RequestState.COMPLETED, Usage(1, 0), result=result))
    assert decode_event(encode(event)) == event


async def test_feature_extraction_returns_plain_vectors(sdk: AsyncOpenAI, api: str) -> None:
    """huggingface_hub sends texts to the URL that it is given."""
    expected = [each.embedding for each in (await sdk.embeddings.create(model=EMBEDDER, input=["a", "b"])).data]
    async with AsyncInferenceClient(base_url=f"{api}/models/{EMBEDDER}", timeout=LIMIT_S) as hub:
        found = await hub.feature_extraction(["a", "b"], normalize=True)
        assert found.tolist() == np.array(expected, dtype="float32").tolist()
        assert (await hub.feature_extraction("a", dimensions=8)).shape == (1, 8)
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        info = {"inputs": "a", "model": EMBEDDER}
        assert (await http.post("/", json=info)).json() == expected[:1]
        [raw] = (await http.post("/", json={**info, "normalize": False})).json()
        assert np.linalg.norm(raw) != pytest.approx(1, abs=0.01)
        assert raw / np.linalg.norm(raw) == pytest.approx(expected[0], abs=1e-6)
        refused = await http.post("/", json={**info, "truncate": True})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
        wrong = await http.post("/generate", json=info)
        assert (wrong.status_code, wrong.json()["error_type"]) == (422, "validation")
