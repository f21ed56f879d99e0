"""Tokenizing a long text does not delay other requests, and prompts are truncated as requests ask for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from shared.backend import Backend
from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.protocol import Embed, Message, PromptOptions, Request, Result, Tokenize
from tests.support.fakes import answer, make_request, submit
from tests.support.worker_harness import Harness, RecordingEngine, answer_tokens, expected_tokens, wait_until
from workers.engine.interface import EngineOutput, EngineRequest
from workers.preparation.prompt_encoding import MAX_INLINE_CHARS, MAX_POOLED_CHARS, encode
from workers.scripted_engine import ScriptedEngine, ScriptedTokenizer

SLOW = "slow"
POOLED = "x" * (MAX_INLINE_CHARS + 1)  # too long to be encoded inline, and not long


class GatedTokenizer(ScriptedTokenizer):
    """Tokenizer that blocks on texts starting with SLOW until its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.texts: list[str] = []

    def encode(self, text: str, **how: Any) -> list[int]:
        self.texts.append(text)
        if SLOW in text[:20]:
            assert self.gate.wait(60)
        return super().encode(text, **how)


class GatedTokenizerEngine(ScriptedEngine):
    """Engine with a GatedTokenizer; it returns an empty result for embeddings."""

    def __init__(self) -> None:
        super().__init__(max_model_len=10 * MAX_POOLED_CHARS)
        self.tokenizer: GatedTokenizer = GatedTokenizer()
        self._embedded: list[EngineOutput] = []

    def add(self, request: EngineRequest) -> None:
        if request.lengths:
            self._embedded.append(EngineOutput(request.id, finished=True, result=Result()))
        else:
            super().add(request)

    def step(self) -> list[EngineOutput]:
        ended, self._embedded = self._embedded, []
        return ended or super().step()

    def has_work(self) -> bool:
        return bool(self._embedded) or super().has_work()


def request_with(**fields: Any) -> Request:
    return msgspec.structs.replace(make_request(max_tokens=2), **fields)


TEXT = SLOW + "x" * MAX_POOLED_CHARS
SLOW_REQUESTS: dict[str, dict[str, Any]] = {
    "completion": {"prompt": TEXT},
    "chat": {"prompt": None, "messages": (Message("user", TEXT),)},
    "tokenize": {"prompt": TEXT, "work": Tokenize()},
    "embedding": {"prompt": None, "work": Embed((TEXT,))},
}


@pytest.mark.parametrize("fields", SLOW_REQUESTS.values(), ids=SLOW_REQUESTS)
async def test_tokenizing_does_not_delay_other_requests(
    harness: Harness, backend: Backend, fields: dict[str, Any]
) -> None:
    """Given a long text in the tokenizer, expect shorter requests to be answered first."""
    engine = GatedTokenizerEngine()
    engine.task = "embed" if isinstance(fields.get("work"), Embed) else "generate"
    slow, others = request_with(**fields), [request_with(prompt=text) for text in ("brief", POOLED, "another")]
    if engine.task == "embed":
        others = [request_with(prompt=None, work=Embed((text,))) for text in ("brief", POOLED)]
    async with harness.worker(engine):
        await submit(backend, slow)
        await wait_until(lambda: len(engine.tokenizer.texts) == 1)
        for other in others:
            await submit(backend, other)
        ends = await asyncio.gather(*(answer(backend, other.id) for other in others))
        assert [end[-1].terminal.error for end in ends if end[-1].terminal] == [None] * len(others)
        [record] = await backend.token_log.records([slow.id])
        assert record is not None
        assert not record.state.terminal
        engine.tokenizer.gate.set()
        [*_, end] = await answer(backend, slow.id)
    assert end.terminal is not None
    assert end.terminal.error is None


async def test_long_texts_are_tokenized_one_at_a_time(harness: Harness, backend: Backend) -> None:
    engine = GatedTokenizerEngine()
    longs = [request_with(prompt=TEXT + str(i)) for i in range(3)]
    async with harness.worker(engine):
        for request in longs:
            await submit(backend, request)
        usual = request_with(prompt=POOLED)
        await submit(backend, usual)
        assert answer_tokens(await answer(backend, usual.id)) == expected_tokens(usual)
        assert [text for text in engine.tokenizer.texts if text != POOLED] == [longs[0].prompt]
        engine.tokenizer.gate.set()
        for request in longs:
            assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)
    assert [text for text in engine.tokenizer.texts if text != POOLED] == [each.prompt for each in longs]


async def test_short_requests_reach_the_engine_in_order(harness: Harness, backend: Backend) -> None:
    requests = [request_with(prompt=f"{i}") for i in range(20)]
    for request in requests:
        await submit(backend, request)
    engine = GatedTokenizerEngine()
    async with harness.worker(engine):
        for request in requests:
            await answer(backend, request.id)
    assert engine.tokenizer.texts == [str(i) for i in range(20)]


async def test_a_request_cancelled_while_tokenized_is_not_run(harness: Harness, backend: Backend) -> None:
    engine = GatedTokenizerEngine()
    slow, other = request_with(prompt=TEXT), request_with(prompt="other")
    async with harness.worker(engine) as worker:
        await submit(backend, slow)
        await wait_until(lambda: len(engine.tokenizer.texts) == 1)
        await backend.token_log.close(slow.id)
        await wait_until(lambda: not worker._by_job)
        engine.tokenizer.gate.set()
        await submit(backend, other)
        assert answer_tokens(await answer(backend, other.id)) == expected_tokens(other)
        assert len(await answer(backend, slow.id)) == 1
        assert not engine.has_work()


CONTEXT = 10


@pytest.mark.parametrize(
    ("options", "max_tokens", "kept"),
    [
        ({"truncate_prompt_tokens": 4}, None, "mno\n"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, None, "user"),
        ({"truncate_prompt_tokens": 16}, None, "user:fghijklmno\n"),
        ({"truncate_prompt_tokens": -1}, None, "hijklmno\n"),
        ({"truncate_prompt_tokens": -1}, 3, "jklmno\n"),
        ({"truncate_prompt_tokens": -1}, 99, "\n"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "ids", "chat", "tokenize"])
def test_prompts_are_truncated(options: dict[str, Any], max_tokens: int | None, kept: str, kind: str) -> None:
    """Given a text of 16 tokens that does not fit the context, expect the tokens that the request keeps."""
    text = "user:fghijklmno\n"  # the whole chat too, as the scripted tokenizer renders it
    fields: dict[str, Any] = {
        "text": {"prompt": text},
        "ids": {"prompt": tuple(map(ord, text))},
        "chat": {"prompt": None, "messages": (Message("user", "fghijklmno"),)},
        "tokenize": {"prompt": text, "work": Tokenize()},
    }[kind]
    request = request_with(**fields, prompt_options=PromptOptions(**options))
    request = msgspec.structs.replace(
        request, params=msgspec.structs.replace(request.params, max_tokens=max_tokens)
    )
    found = encode(ScriptedTokenizer(), request, CONTEXT)
    assert "".join(map(chr, found.result.tokens if found.result else found.prompt)) == kept


def test_a_prompt_truncated_to_nothing_is_refused() -> None:
    request = request_with(prompt="abc", prompt_options=PromptOptions(truncate_prompt_tokens=0))
    with pytest.raises(InvalidRequest, match="at least one token"):
        encode(ScriptedTokenizer(), request, CONTEXT)
    with pytest.raises(ContextLengthExceeded):
        encode(ScriptedTokenizer(), request_with(prompt="a" * 11), CONTEXT)


def test_a_suffix_makes_an_infilling_prompt() -> None:
    request = request_with(prompt="a", prompt_options=PromptOptions(suffix="b"))
    assert encode(ScriptedTokenizer(), request, CONTEXT).prompt == tuple(map(ord, "a[gap]b"))


async def test_a_cache_salt_separates_prefixes_of_a_tenant(harness: Harness, backend: Backend) -> None:
    engine = RecordingEngine()
    salted = [("t", ""), ("t", "x"), ("t", "y"), ("t", "x"), ("tx", ""), ("u", "x")]
    async with harness.worker(engine):
        for tenant, salt in salted:
            request = request_with(prompt="same", tenant=tenant, cache_salt=salt)
            await submit(backend, request)
            await answer(backend, request.id)
    salts = [request.prefix_salt for request in engine.requests]
    assert salts[1] == salts[3]
    assert len(set(salts)) == len(set(salted))
