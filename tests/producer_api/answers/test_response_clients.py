"""Third-party clients of OpenAI's responses, unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.fakes import MODEL
from tests.support.responses_api import TOOL, Weather, call
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.slow  # to import them takes seconds


async def test_langchain_works_on_responses(api: str, worker: ScriptedWorker) -> None:
    from langchain_openai import ChatOpenAI

    async with httpx.AsyncClient(timeout=LIMIT_S) as http:  # one of its own it would never close
        chat = ChatOpenAI(
            model=MODEL,
            base_url=f"{api}/v1",
            api_key="none",
            max_retries=0,
            use_responses_api=True,
            use_previous_response_id=True,
            output_version="responses/v1",
            http_async_client=http,
        )
        await converse(chat, worker)


async def converse(chat: Any, worker: ScriptedWorker) -> None:
    async def answered(ask: Any, *texts: str) -> Any:
        asked = asyncio.create_task(ask)
        await worker.answer(*texts)
        return await asked

    first = await answered(chat.ainvoke([("system", "be kind"), ("human", "hi")]), "Hel", "lo")
    assert (first.text, first.usage_metadata["total_tokens"]) == ("Hello", 7)
    asked = asyncio.create_task(chat.ainvoke([("human", "hi"), first, ("human", "more")]))
    request = await worker.answer("x")
    assert [message.content for message in request.messages or ()] == ["be kind", "hi", "Hello", "more"]
    await asked

    async def streamed() -> str:
        return "".join([chunk.text async for chunk in chat.astream("hi")])

    assert await answered(streamed(), "a", "b") == "ab"
    structured = chat.with_structured_output(Weather, method="json_schema")
    assert await answered(structured.ainvoke("hi"), '{"city": "Bern", "degrees": 3}') == Weather(
        city="Bern", degrees=3
    )
    asked = asyncio.create_task(chat.bind_tools([TOOL]).ainvoke("hi"))
    await call(await worker.take())
    [made] = (await asked).tool_calls
    assert (made["name"], made["args"]) == ("f", {"x": 0})


async def test_litellm_works_on_responses(
    api: str, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # nothing is fetched
    import litellm

    address: dict[str, Any] = {"api_base": f"{api}/v1", "api_key": "none"}
    asked = asyncio.create_task(litellm.aresponses(model=f"openai/{MODEL}", input="hi", **address))
    await worker.answer("Hel", "lo")
    response = await asked
    assert response.output[0].content[0].text == "Hello"
    assert response.usage.total_tokens == 7
    again = await litellm.aget_responses(response.id, custom_llm_provider="openai", **address)
    assert again.output[0].content[0].text == "Hello"
