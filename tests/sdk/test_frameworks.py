"""langchain-openai and litellm as clients: chat, streams, completions and embeddings of each."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from tests.fakes import MODEL
from tests.sdk.conftest import EMBEDDER

pytestmark = [
    pytest.mark.slow,  # they take seconds to import
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(litellm|langchain|langsmith|pydantic|importlib).*"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # of litellm's own types
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # litellm keeps its clients
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The clients that they keep open are collected while this module's warnings are ignored, in no later test."""
    yield
    if (litellm := sys.modules.get("litellm")) is not None:
        litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()


async def test_langchain(api: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

    common = {"base_url": f"{api}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model=MODEL, max_tokens=4, **common)
    answer = await chat.ainvoke([("system", "be brief"), ("human", "hi")])
    assert len(answer.content.split()) == 4
    assert answer.usage_metadata["output_tokens"] == 4
    told = [chunk.content async for chunk in chat.astream([("system", "be brief"), ("human", "hi")])]
    assert "".join(told) == answer.content and len(told) > 3
    complete = OpenAI(model=MODEL, max_tokens=3, n=2, best_of=2, **common)
    found = await complete.agenerate(["one", "two"])
    assert [len(generations) for generations in found.generations] == [2, 2]
    assert (
        len("".join([text async for text in OpenAI(model=MODEL, max_tokens=3, **common).astream("x")]).split()) == 3
    )
    embeddings = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False, **common)
    vectors = await embeddings.aembed_documents(["a", "b"])
    assert [len(vector) for vector in vectors] == [384, 384]
    assert await embeddings.aembed_query("a") == vectors[0]


async def test_litellm(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch one
    import litellm

    monkeypatch.setattr(litellm, "telemetry", False)
    common = {"api_base": f"{api}/v1", "api_key": "none", "max_retries": 0}
    messages = [{"role": "user", "content": "hi"}]
    answer = await litellm.acompletion(model=f"openai/{MODEL}", messages=messages, max_tokens=4, **common)
    assert answer.usage.completion_tokens == 4
    stream = await litellm.acompletion(
        model=f"openai/{MODEL}", messages=messages, max_tokens=4, stream=True, **common
    )
    told = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(told) == answer.choices[0].message.content
    text = await litellm.atext_completion(
        model=f"text-completion-openai/{MODEL}", prompt="hi", max_tokens=3, **common
    )
    assert len(text.choices[0].text.split()) == 3
    vectors = await litellm.aembedding(model=f"openai/{EMBEDDER}", input=["a", "b"], **common)
    assert [len(each["embedding"]) for each in vectors.data] == [384, 384]
    with pytest.raises(litellm.NotFoundError):
        await litellm.acompletion(model="openai/none", messages=messages, **common)
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion(model=f"openai/{MODEL}", messages=messages, temperature=9, **common)
