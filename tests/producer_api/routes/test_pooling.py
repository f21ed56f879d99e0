"""vLLM's APIs of models that do not generate, in the shapes that it documents, with real workers."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from producer_api.schemas.dead_letters import as_submitted
from shared.backend import Backend
from shared.schemas.encoder_fields import EncoderFields
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.parsing import validate
from shared.schemas.vllm.pooling import PoolingRequest
from shared.schemas.vllm.scoring import ScoreRequest
from shared.settings import Settings
from tests.support.encoder_checkpoints import save_encoder
from tests.support.fakes import MODEL
from tests.support.worker_harness import Harness
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine

QUERY = "what drives a mill"
DOCUMENTS = ["the court adjourned.", "water turns its wheel.", "x"]
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/score", {"queries": "a"}, "documents"),
    ("/score", {"documents": "a"}, "queries"),
    ("/score", {"queries": "a", "text_1": "a", "documents": "b"}, "text_1"),
    ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
    ("/score", {"queries": [], "documents": "b"}, "queries"),
    ("/score", {"queries": "a", "data_2": [{"content": []}]}, "data_2"),
    ("/score", {"text_1": "a", "text_2": "b " * 600}, "text_2"),
    ("/score", {"queries": "a", "documents": ["b"] * 2049}, "documents"),
    ("/score", {"queries": "a", "documents": "b", "max_tokens_per_doc": -1}, "max_tokens_per_doc"),
    ("/score", {"queries": "a", "documents": "b", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ("/score", {"queries": "a", "documents": "b", "truncation_side": "up"}, "truncation_side"),
    ("/score", {"queries": "a", "documents": "b", "instruction": "Judge."}, "instruction"),
    ("/score", {"queries": "a", "documents": "b", "padding": "max_length"}, "padding"),
    ("/score", {"queries": "a", "documents": "b", "model": "classifier"}, "model"),
    ("/score", {"queries": "a", "documents": "b", "model": MODEL}, "model"),
    ("/rerank", {"query": "a", "documents": []}, "documents"),
    ("/rerank", {"query": ["a"], "documents": ["b"]}, "query"),
    ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ("/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0].text"),
    ("/rerank", {"query": "a", "documents": [1]}, "documents[0]"),
    ("/classify", {"model": "classifier"}, "input"),
    ("/classify", {"model": "classifier", "input": ""}, "input"),
    ("/classify", {"model": "classifier", "input": "a " * 200}, "input"),
    ("/classify", {"model": "classifier", "messages": [{"role": "user", "content": "a"}]}, "messages"),
    ("/classify", {"model": "classifier", "input": "a", "chat_template": "x"}, "chat_template"),
    ("/classify", {"model": "minilm", "input": "a"}, "model"),
    ("/classify", {"model": "tagger", "input": "a"}, "task"),
    ("/pooling", {"input": "a", "task": "plugin"}, "task"),
    ("/pooling", {"input": "a", "task": "classify"}, "model"),
    ("/pooling", {"model": "tagger", "input": "a", "task": "classify"}, "task"),
    ("/pooling", {"input": "a", "encoding_format": "bytes"}, "encoding_format"),
    ("/pooling", {"input": "a", "embed_dtype": "int8"}, "embed_dtype"),
    ("/pooling", {"input": "a", "endianness": "middle"}, "endianness"),
    ("/pooling", {"input": "a", "dimensions": 8}, "dimensions"),
    ("/pooling", {"input": ["a"] * 33, "task": "token_embed"}, "input"),
    ("/pooling", {"input": ["a " * 250] * 32, "task": "token_embed"}, "input"),
    ("/v1/embeddings", {"model": "classifier", "input": "a"}, "model"),
    ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
    ("/v1/completions", {"model": "classifier", "prompt": "a"}, "model"),
]
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}go{% endif %}"
SCORES, RANKS = ("/v1/score", "/score"), ("/rerank", "/v1/rerank", "/v2/rerank")


@pytest.fixture(scope="module")
def engines(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, EncoderEngine]:
    """An engine of each kind."""
    folders = {"minilm": minilm}
    for name, kind, labels in (
        ("classifier", "Sequence", ("no", "yes", "maybe")),
        ("tagger", "Token", ("O", "NAME")),
        ("cross-encoder", "Sequence", ("relevance",)),
    ):
        folder, sizes = tmp_path_factory.mktemp(name), {"max_position_embeddings": 128}
        folders[name] = save_encoder(
            folder, f"BertFor{kind}Classification", id2label=dict(enumerate(labels)), **sizes
        )
    (folders["cross-encoder"] / "chat_template.jinja").write_text(TEMPLATE)
    return {name: EncoderEngine.load(EngineConfig(folder)) for name, folder in folders.items()}


@pytest.fixture
async def http(
    client: httpx.AsyncClient, backend: Backend, settings: Settings, engines: Mapping[str, EncoderEngine]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with a worker for each engine, beside one that answers in text."""
    async with AsyncExitStack() as stack:
        for name, engine in engines.items():
            await stack.enter_async_context(Harness(backend, settings).worker(engine, name, name))
        while len(await backend.registry.models()) <= len(engines):
            await asyncio.sleep(0)
        yield client


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def error_of(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await http.post(path, json=body)
    assert answer.status_code == 400, (path, body, answer.text)
    found: dict[str, Any] = answer.json()["error"]
    return found


def scores(answer: dict[str, Any]) -> list[float]:
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    assert {each["object"] for each in answer["data"]} == {"score"}
    return [each["score"] for each in answer["data"]]


async def test_all_names_of_queries_and_documents_give_the_same_scores(http: httpx.AsyncClient) -> None:
    for model in ("minilm", "cross-encoder"):
        found = await check_names(http, model)
        plain = scores(
            await post(http, "/score", model=model, queries=QUERY, documents=DOCUMENTS, use_activation=False)
        )
        if model == "minilm":
            assert max(found) == found[1]
            assert plain == found
        else:
            np.testing.assert_allclose(1 / (1 + np.exp(-np.array(plain))), found, atol=1e-6)


async def check_names(http: httpx.AsyncClient, model: str) -> list[float]:
    """Return the scores of the documents for the query, which are the same under all names."""
    whole = await post(http, "/score", model=model, queries=QUERY, documents=DOCUMENTS)
    assert whole["id"].startswith("score-")
    assert (whole["object"], whole["model"]) == ("list", model)
    assert whole["created"] > 1_600_000_000
    assert whole["usage"]["prompt_tokens"] == whole["usage"]["total_tokens"] > 0
    found = scores(whole)
    names = itertools.product(
        ("queries", "text_1", "data_1"), ("documents", "items", "text_2", "data_2"), ([QUERY], [QUERY] * 3)
    )
    for (first, second, queries), path in zip(names, itertools.cycle(SCORES), strict=False):
        answer = await post(http, path, model=model, **{first: queries, second: DOCUMENTS})
        assert scores(answer) == found
    for document, score in zip(DOCUMENTS, found, strict=True):
        alone = await post(http, "/v1/score", model=model, text_1=QUERY, text_2=document)
        assert scores(alone) == [score]
    return found


async def test_many_documents_are_split_and_keep_their_order(http: httpx.AsyncClient) -> None:
    texts = [f"mill number {number}" for number in range(70)]
    body = {"model": "cross-encoder", "max_tokens_per_query": 4}
    whole = scores(await post(http, "/score", queries="a river", documents=texts, **body))
    assert len(set(whole)) > 60
    for pairs in (texts[32:34], texts[69:]):
        alone = await post(http, "/score", queries=["a riv"] * len(pairs), documents=pairs, **body)
        assert scores(alone) == whole[texts.index(pairs[0]) :][: len(pairs)]
    queries = [f"river {number}" for number in range(70)]
    many = scores(await post(http, "/score", queries=queries, documents=texts, **body))
    assert many[40] == scores(await post(http, "/score", queries=queries[40], documents=texts[40], **body))[0]


async def test_documents_are_sorted_by_relevance(http: httpx.AsyncClient) -> None:
    path, *others = RANKS
    body = {"model": "minilm", "query": QUERY, "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]}
    answer = await post(http, path, **body)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    results = answer["results"]
    wanted = scores(await post(http, "/score", model="minilm", queries=QUERY, documents=DOCUMENTS))
    assert [each["relevance_score"] for each in results] == sorted(wanted, reverse=True)
    assert results[0]["document"] == {"text": DOCUMENTS[1]}
    for each in results:
        assert each["relevance_score"] == wanted[each["index"]]
    for other in others:
        assert (await post(http, other, **body))["results"] == results
    assert (await post(http, path, top_n=1, **body))["results"] == results[:1]
    assert (await post(http, path, top_n=0, **body))["results"] == results
    assert (await post(http, path, top_n=9, **body))["results"] == results
    bare = await post(http, path, return_documents=False, **body)
    assert bare["results"] == [{key: each[key] for key in ("index", "relevance_score")} for each in results]


async def test_texts_are_classified(http: httpx.AsyncClient) -> None:
    answer = await post(http, "/classify", model="classifier", input=["a mill", "no"])
    assert (answer["object"], answer["model"]) == ("list", "classifier")
    assert answer["id"].startswith("classify-")
    assert answer["usage"] == {"prompt_tokens": 7 + 4, "total_tokens": 7 + 4}
    for index, each in enumerate(answer["data"]):
        assert (each["index"], each["num_classes"]) == (index, 3)
        assert sum(each["probs"]) == pytest.approx(1, abs=1e-6)
        assert each["label"] == ("no", "yes", "maybe")[int(np.argmax(each["probs"]))]
    plain = await post(http, "/classify", model="classifier", input="a mill", use_activation=False)
    logits = torch.tensor(plain["data"][0]["probs"])
    np.testing.assert_allclose(logits.softmax(-1), answer["data"][0]["probs"], atol=1e-6)
    many = await post(http, "/classify", model="classifier", input=[f"mill {number}" for number in range(40)])
    last = await post(http, "/classify", model="classifier", input="mill 39")
    assert many["data"][39] == {**last["data"][0], "index": 39}
    one = await post(http, "/classify", model="cross-encoder", input="a mill")
    assert (one["data"][0]["label"], one["data"][0]["num_classes"]) == ("relevance", 1)


async def test_a_chat_is_rendered_with_the_models_template(http: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "a mill"}, {"role": "user", "content": "turns"}]
    for path in ("/classify", "/pooling"):
        for given, text in (({}, "a mill turns"), ({"add_generation_prompt": True}, "a mill turns go")):
            chat = await post(http, path, model="cross-encoder", messages=messages, **given)
            plain = await post(http, path, model="cross-encoder", input=text, add_special_tokens=False)
            assert (chat["data"], chat["usage"]) == (plain["data"], plain["usage"])


async def test_outputs_are_pooled_as_the_model_or_the_task_says(http: httpx.AsyncClient) -> None:
    for model, task, shape in (
        ("minilm", None, (384,)),
        ("minilm", "embed", (384,)),
        ("minilm", "token_embed", (4, 384)),
        ("classifier", None, (3,)),
        ("classifier", "classify", (3,)),
        ("tagger", None, (7, 2)),
        ("tagger", "token_classify", (7, 2)),
    ):
        body = {"model": model, "input": "a mill", "task": task}
        answer = await post(http, "/pooling", **body)
        assert (answer["object"], answer["data"][0]["object"]) == ("list", "pooling")
        assert answer["id"].startswith("pool-")
        found = np.array(answer["data"][0]["data"])
        assert found.shape == shape
        encoded = await post(http, "/pooling", encoding_format="base64", **body)
        data = np.frombuffer(base64.b64decode(encoded["data"][0]["data"]), "<f4")
        assert (data.reshape(shape) == found.astype("<f4")).all()
    whole = await post(http, "/pooling", model="minilm", input="a mill")
    vector = await post(http, "/v1/embeddings", model="minilm", input="a mill")
    assert whole["data"][0]["data"] == vector["data"][0]["embedding"]
    one_token = await post(http, "/pooling", model="tagger", input=[[5]])
    assert np.array(one_token["data"][0]["data"]).shape == (1, 2)


async def test_base64_has_the_type_and_the_byte_order_that_are_asked_for(http: httpx.AsyncClient) -> None:
    plain = (await post(http, "/v1/embeddings", model="minilm", input="a mill"))["data"][0]["embedding"]
    wanted = torch.tensor(plain)
    for name, dtype, code in (
        ("float32", torch.float32, "f4"),
        ("float16", torch.float16, "f2"),
        ("bfloat16", torch.bfloat16, "u2"),
        ("fp8_e4m3", torch.float8_e4m3fn, "u1"),
        ("fp8_e5m2", torch.float8_e5m2, "u1"),
    ):
        bits = wanted.to(dtype).view(torch.uint8).numpy().view(f"<{code}")
        for order, mark in ((None, "<"), ("native", "<"), ("little", "<"), ("big", ">")):
            form = {"encoding_format": "base64", "embed_dtype": name, "endianness": order}
            answer = await post(http, "/v1/embeddings", model="minilm", input="a mill", **form)
            data = base64.b64decode(answer["data"][0]["embedding"])
            assert (np.frombuffer(data, mark + code) == bits).all(), (name, order)
    unchanged = await post(http, "/v1/embeddings", model="minilm", input="a mill", embed_dtype="float16")
    assert unchanged["data"][0]["embedding"] == plain


async def test_texts_are_truncated_on_request_only(http: httpx.AsyncClient) -> None:
    body = {"model": "minilm", "input": "a mill turns its wheel"}
    short = await post(http, "/v1/embeddings", model="minilm", input="a mill")
    cut = await post(http, "/v1/embeddings", truncate_prompt_tokens=4, **body)
    assert cut["data"] == short["data"]
    assert cut["usage"]["prompt_tokens"] == 4
    last = await post(http, "/v1/embeddings", truncate_prompt_tokens=3, truncation_side="left", **body)
    assert last["data"] == (await post(http, "/v1/embeddings", model="minilm", input="wheel"))["data"]
    bare = await post(http, "/v1/embeddings", add_special_tokens=False, **body)
    assert bare["usage"]["prompt_tokens"] == 5
    long = {"model": "cross-encoder", "queries": "a " * 90, "documents": "b " * 90}
    assert (await error_of(http, "/score", **long))["param"] == "documents"
    fitted = await post(http, "/score", truncate_prompt_tokens=-1, **long)
    assert fitted["usage"]["prompt_tokens"] == 128


async def test_bad_input_is_refused_by_the_name_of_its_field(http: httpx.AsyncClient) -> None:
    for path, fields, param in WRONG:
        error = await error_of(http, path, **{"model": "minilm", **fields})
        assert error["param"] == param, (path, fields, error)
        assert error["type"] == "invalid_request_error"


async def test_a_repeated_key_returns_the_first_answer(http: httpx.AsyncClient) -> None:
    body, headers = {"model": "minilm", "query": QUERY, "documents": DOCUMENTS}, {"idempotency-key": "k"}
    first, again = [await http.post("/rerank", json=body, headers=headers) for _ in range(2)]
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content
    other = await http.post("/score", json={"model": "minilm", "queries": "a", "documents": "b"}, headers=headers)
    assert other.status_code == 422


async def test_models_have_their_task(http: httpx.AsyncClient) -> None:
    listed = {each["id"]: each["task"] for each in (await http.get("/v1/models")).json()["data"]}
    of_classes = dict.fromkeys(("classifier", "tagger", "cross-encoder"), "classify")
    assert listed == {MODEL: "generate", "minilm": "embed", **of_classes}


async def test_classes_are_listed_as_pipelines_do(http: httpx.AsyncClient) -> None:
    """The classes have the form that InferenceClient.text_classification reads, in each of its functions."""

    async def classes(**parameters: object) -> list[list[dict[str, Any]]]:
        body = {"inputs": ["good", "bad"], "parameters": parameters}
        found: list[list[dict[str, Any]]] = (await http.post("/models/classifier", json=body)).json()
        return found

    own, softmax, raw = [await classes(function_to_apply=each) for each in (None, "softmax", "none")]
    assert [[each["score"] for each in row] for row in softmax] == [
        pytest.approx([each["score"] for each in row], abs=1e-6) for row in own
    ]
    assert all(sum(each["score"] for each in row) == pytest.approx(1) for row in own)
    assert [[each["label"] for each in row] for row in raw] == [[each["label"] for each in row] for row in own]
    assert await classes(top_k=1) == [row[:1] for row in own]
    [[sigmoid, *_], _] = await classes(function_to_apply="sigmoid")
    assert sigmoid["score"] == pytest.approx(1 / (1 + math.exp(-raw[0][0]["score"])))


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (EmbeddingRequest, {"input": ["a", "b"], "dimensions": 8, "truncate_prompt_tokens": 4}),
        (PoolingRequest, {"input": [[1, 2]], "task": "token_embed", "use_activation": False}),
        (PoolingRequest, {"messages": [{"role": "user", "content": "a"}]}),
        (ScoreRequest, {"queries": "a", "documents": ["b", "c"], "max_tokens_per_doc": 5}),
        (ScoreRequest, {"queries": "a", "documents": "b", "truncate_prompt_tokens": 9, "truncation_side": "left"}),
    ],
)
def test_a_dead_letter_shows_the_body_that_submits_the_work_again(
    schema: type[EncoderFields], fields: dict[str, Any]
) -> None:
    [draft] = validate(json.dumps({"model": "m", **fields}).encode(), schema).to_requests("t")
    [again] = validate(json.dumps(as_submitted(draft)).encode(), schema).to_requests("t")
    assert again == draft
