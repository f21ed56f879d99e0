"""`python -m tests.sdk.frameworks langchain|litellm URL MODEL EMBEDDER`: use these packages as their users do.

A process of its own: they leave clients open, which are collected whenever it suits them.
"""

from __future__ import annotations

import asyncio
import os
import sys

import pytest


async def with_langchain(url: str, model: str, embedder: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

    common = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model=model, max_tokens=4, **common)
    answer = await chat.ainvoke([("system", "be brief"), ("human", "hi")])
    assert len(answer.content.split()) == 4
    assert answer.usage_metadata["output_tokens"] == 4
    chunks = [chunk.content async for chunk in chat.astream([("system", "be brief"), ("human", "hi")])]
    assert "".join(chunks) == answer.content and len(chunks) > 3
    again = await chat.ainvoke([("human", "hi"), answer, ("human", "again")])
    assert again.usage_metadata["output_tokens"] == 4
    complete = OpenAI(model=model, max_tokens=3, n=2, best_of=2, **common)
    found = await complete.agenerate(["one", "two"])
    assert [len(generations) for generations in found.generations] == [2, 2]
    assert (
        len("".join([text async for text in OpenAI(model=model, max_tokens=3, **common).astream("x")]).split()) == 3
    )
    embeddings = OpenAIEmbeddings(model=embedder, check_embedding_ctx_length=False, **common)
    vectors = await embeddings.aembed_documents(["a", "b"])
    assert [len(vector) for vector in vectors] == [384, 384]
    assert await embeddings.aembed_query("a") == vectors[0]


async def with_litellm(url: str, model: str, embedder: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it downloads one
    import litellm

    litellm.telemetry = False
    common = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    messages = [{"role": "user", "content": "hi"}]
    answer = await litellm.acompletion(model=f"openai/{model}", messages=messages, max_tokens=4, **common)
    assert answer.usage.completion_tokens == 4
    stream = await litellm.acompletion(
        model=f"openai/{model}", messages=messages, max_tokens=4, stream=True, **common
    )
    chunks = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(chunks) == answer.choices[0].message.content
    again = [*messages, answer.choices[0].message, {"role": "user", "content": "again"}]
    answer = await litellm.acompletion(model=f"openai/{model}", messages=again, max_tokens=4, **common)
    assert answer.usage.completion_tokens == 4
    text = await litellm.atext_completion(
        model=f"text-completion-openai/{model}", prompt="hi", max_tokens=3, **common
    )
    assert len(text.choices[0].text.split()) == 3
    vectors = await litellm.aembedding(model=f"openai/{embedder}", input=["a", "b"], **common)
    assert [len(each["embedding"]) for each in vectors.data] == [384, 384]
    ranked = await litellm.arerank(
        model=f"hosted_vllm/{embedder}",
        query="what drives a mill",
        documents=["the court adjourned", "water turns its wheel"],
        top_n=1,
        api_base=url,
        api_key="none",
    )
    assert [(each["index"], each["document"]["text"]) for each in ranked.results] == [(1, "water turns its wheel")]
    with pytest.raises(litellm.NotFoundError):
        await litellm.acompletion(model="openai/none", messages=messages, **common)
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion(model=f"openai/{model}", messages=messages, temperature=-1, **common)


if __name__ == "__main__":
    package, *given = sys.argv[1:]
    asyncio.run({"langchain": with_langchain, "litellm": with_litellm}[package](*given))
