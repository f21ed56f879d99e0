"""Additions of vLLM's fields to an answer: token ids, scores of the prompt, running usage, an echoed message."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from shared.protocol import FinishReason, Token, TokenLogprobs
from tests.support.fakes import MODEL
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
INPUT: dict[str, dict[str, Any]] = {CHATS: {"messages": MESSAGES}, COMPLETIONS: {"prompt": [1, 2]}}
PROMPT = (
    Token(0, 1, ""),
    Token(0, 2, "", None, TokenLogprobs(-2.0, ((7, -0.5, "a"), (8, -1.0, "b")), "i", {}, 3)),
)
SCORES = [
    None,
    {
        "2": {"logprob": -2.0, "rank": 3, "decoded_token": "i"},
        "7": {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
    },
]
TOKENS = [
    Token(0, 5, "x", None, TokenLogprobs(-0.1, ((5, -0.1, "x"), (6, -3.0, "x")), "x")),
    Token(0, 6, "", FinishReason.LENGTH, TokenLogprobs(-0.2, ((5, -0.1, "x"), (6, -0.2, "x")), "x")),
]

by_api = pytest.mark.parametrize("path", [CHATS, COMPLETIONS])


async def ask(
    client: httpx.AsyncClient,
    worker: ScriptedWorker,
    path: str,
    *tokens: Token,
    prompt=(),
    headers=None,
    **fields: Any,
) -> httpx.Response:
    """Send a request and answer it with these tokens, each in an append of its own."""
    body = {"model": MODEL, **INPUT[path], **fields}
    asked = asyncio.create_task(client.post(path, json=body, headers=headers))
    job = await worker.take()
    for i, token in enumerate(tokens):
        await job.write(token, prompt=prompt if i == 0 else ())
    await job.end()
    response = await asked
    assert response.status_code == 200, response.text
    return response


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@by_api
async def test_token_ids_and_scores_of_the_prompt(
    client: httpx.AsyncClient, worker: ScriptedWorker, path: str
) -> None:
    asked: dict[str, Any] = {"return_token_ids": True, "prompt_logprobs": 1}
    whole = (await ask(client, worker, path, *TOKENS, prompt=PROMPT, **asked)).json()
    streamed = chunks(await ask(client, worker, path, *TOKENS, prompt=PROMPT, **asked, stream=True))
    first = streamed[0] if path == CHATS else streamed[0]["choices"][0]
    of_whole = whole if path == CHATS else whole["choices"][0]
    for found in (of_whole, first):
        assert found["prompt_token_ids"] == [1, 2]
        assert found["prompt_logprobs"] == SCORES
    assert whole["choices"][0]["token_ids"] == [5, 6]
    parts = [chunk["choices"][0].get("token_ids", []) for chunk in streamed]
    assert [part for part in parts if part] == [[5], [6]], "also for a token without text"
    plain = (await ask(client, worker, path, *TOKENS)).json()
    streamed_plain = chunks(await ask(client, worker, path, *TOKENS, stream=True))
    assert "prompt_logprobs" not in json.dumps([plain, streamed_plain])
    assert "token_ids" not in json.dumps([plain, streamed_plain])


async def test_a_scored_prompt_is_not_echoed(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """And an echoed one has as many alternatives as `logprobs` says."""
    asked: dict[str, Any] = {"prompt_logprobs": 2, "logprobs": 1}
    for stream in (False, True):
        response = await ask(client, worker, COMPLETIONS, *TOKENS, prompt=PROMPT, **asked, stream=stream)
        choices = [chunk["choices"][0] for chunk in (chunks(response) if stream else [response.json()])]
        assert "".join(choice["text"] for choice in choices) == "x"
        assert [token for choice in choices for token in choice["logprobs"]["tokens"]] == ["x", "x"]
        response = await ask(client, worker, COMPLETIONS, *TOKENS, prompt=PROMPT, **asked, stream=stream, echo=True)
        choices = [chunk["choices"][0] for chunk in (chunks(response) if stream else [response.json()])]
        found = [top for choice in choices for top in choice["logprobs"]["top_logprobs"]]
        assert found[:2] == [None, {"i": -2.0, "a": -0.5}]


async def test_a_prompt_without_an_answer_is_scored(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Given max_tokens 0, the choice has the prompt's text and scores alone."""
    prompt = (Token(0, 1, "h"), Token(0, 2, "i", None, TokenLogprobs(-2.0, ((7, -0.5, "a"),), "i")))
    body = {"model": MODEL, "prompt": [1, 2], "echo": True, "logprobs": 1, "max_tokens": 0}
    for stream in (False, True):
        asked = asyncio.create_task(client.post(COMPLETIONS, json={**body, "stream": stream}))
        await (await worker.take()).end(prompt=prompt)
        response = await asked
        [choice] = chunks(response)[0]["choices"] if stream else response.json()["choices"]
        assert choice["text"] == "hi"
        assert choice["logprobs"] == {
            "tokens": ["h", "i"],
            "token_logprobs": [None, -2.0],
            "top_logprobs": [None, {"i": -2.0, "a": -0.5}],
            "text_offset": [0, 1],
        }
    assert response.status_code == 200


@by_api
async def test_tokens_are_named_by_their_ids(client: httpx.AsyncClient, worker: ScriptedWorker, path: str) -> None:
    asked: dict[str, Any] = {"logprobs": 2} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 2}
    asked |= {"return_tokens_as_token_ids": True}
    for stream in (False, True):
        response = await ask(client, worker, path, *TOKENS, **asked, stream=stream)
        choices = [chunk["choices"][0] for chunk in (chunks(response) if stream else [response.json()])]
        found = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        if path == COMPLETIONS:
            assert [token for each in found for token in each["tokens"]] == ["token_id:5", "token_id:6"]
            assert found[0]["top_logprobs"][0] == {"token_id:5": -0.1, "token_id:6": -3.0}
        else:
            content = [token for each in found for token in each["content"]]
            assert [token["token"] for token in content] == ["token_id:5", "token_id:6"]
            assert content[1]["bytes"] == list(b"x"), "of its text"
            assert [top["token"] for top in content[1]["top_logprobs"]] == ["token_id:5", "token_id:6"]


@by_api
async def test_each_chunk_has_the_usage_so_far(
    client: httpx.AsyncClient, worker: ScriptedWorker, path: str
) -> None:
    """From any replica: a resumed stream has the same chunks."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    keyed = {"idempotency-key": "k"}
    whole = await ask(client, worker, path, *TOKENS, stream=True, stream_options=options, headers=keyed)
    *parts, last = chunks(whole)
    assert [part["usage"]["completion_tokens"] for part in parts][-1] == 2
    assert {part["usage"]["prompt_tokens"] for part in parts} == {PROMPT_TOKENS}
    assert [part["usage"]["completion_tokens"] for part in parts if part["choices"][0]["finish_reason"] is None][
        -1
    ] == 1
    assert last["usage"]["completion_tokens"] == 2
    body = {"model": MODEL, **INPUT[path], "stream": True, "stream_options": options}
    rest = await client.post(path, json=body, headers={**keyed, "last-event-id": "0"})
    assert whole.text.endswith(rest.text)
    assert len(chunks(rest)) >= 2


@by_api
@pytest.mark.parametrize("options", [None, {}, {"include_usage": True, "continuous_usage_stats": True}])
async def test_stream_options_without_a_stream_have_no_effect(
    client: httpx.AsyncClient, worker: ScriptedWorker, path: str, options: dict[str, bool] | None
) -> None:
    found = (await ask(client, worker, path, *TOKENS, stream_options=options)).json()
    assert found["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "x"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "He"}]}, "Hex"),
        ({"messages": MESSAGES, "add_generation_prompt": False}, "hix"),
    ],
)
async def test_a_chat_echoes_the_message_that_it_continues(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], text: str
) -> None:
    for stream in (False, True):
        response = await ask(client, worker, CHATS, *TOKENS, **fields, echo=True, stream=stream)
        if stream:
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks(response)]
            assert "".join(delta.get("content") or "" for delta in deltas) == text
            assert deltas[0]["role"] == "assistant"
        else:
            assert response.json()["choices"][0]["message"]["content"] == text
    plain = await ask(client, worker, CHATS, *TOKENS, **fields, echo=False)
    assert plain.json()["choices"][0]["message"]["content"] == "x"
