"""Tokenizing holds nobody up, and a text that cannot fit the context is not tokenized."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from shared.backend import Backend
from shared.protocol import Embed, Message, Request, Result, Tokenize
from tests.support.fakes import answer, make_request, submit
from tests.support.worker_harness import Harness, foretold, told, until
from workers.engine.interface import EngineOutput, EngineRequest
from workers.prompt_encoding import MAX_INLINE_CHARS, MAX_POOLED_CHARS
from workers.scripted_engine import ScriptedEngine, ScriptedTokenizer

SLOW = "slow"
USUAL = "x" * (MAX_INLINE_CHARS + 1)  # not brief, and not long


class GatedTokenizer(ScriptedTokenizer):
    """Holds texts that begin with SLOW until its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.texts: list[str] = []

    def encode(self, text: str, **how: Any) -> list[int]:
        self.texts.append(text)
        if SLOW in text[:20]:
            assert self.gate.wait(60)
        return super().encode(text, **how)


class GatedEncoding(ScriptedEngine):
    """Answers a request to embed with nothing."""

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


def asking(**fields: Any) -> Request:
    return msgspec.structs.replace(make_request(max_tokens=2), **fields)


TEXT = SLOW + "x" * MAX_POOLED_CHARS
HOLDING: dict[str, dict[str, Any]] = {
    "completion": {"prompt": TEXT},
    "chat": {"prompt": None, "messages": (Message("user", TEXT),)},
    "tokenize": {"prompt": TEXT, "work": Tokenize()},
    "embedding": {"prompt": None, "work": Embed((TEXT,))},
}


@pytest.mark.parametrize("fields", HOLDING.values(), ids=HOLDING)
async def test_a_text_being_tokenized_holds_up_no_neighbour(
    harness: Harness, backend: Backend, fields: dict[str, Any]
) -> None:
    """Given a long text in the tokenizer, Expect brief and usual requests to be answered before it is done."""
    engine = GatedEncoding()
    engine.task = "embed" if isinstance(fields.get("work"), Embed) else "generate"
    slow, others = asking(**fields), [asking(prompt=text) for text in ("brief", USUAL, "another")]
    if engine.task == "embed":
        others = [asking(prompt=None, work=Embed((text,))) for text in ("brief", USUAL)]
    async with harness.worker(engine):
        await submit(backend, slow)
        await until(lambda: len(engine.tokenizer.texts) == 1)
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


async def test_long_texts_take_turns_among_themselves(harness: Harness, backend: Backend) -> None:
    engine = GatedEncoding()
    longs = [asking(prompt=TEXT + str(i)) for i in range(3)]
    async with harness.worker(engine):
        for request in longs:
            await submit(backend, request)
        usual = asking(prompt=USUAL)
        await submit(backend, usual)
        assert told(await answer(backend, usual.id)) == foretold(usual)
        assert [text for text in engine.tokenizer.texts if text != USUAL] == [longs[0].prompt]
        engine.tokenizer.gate.set()
        for request in longs:
            assert told(await answer(backend, request.id)) == foretold(request)
    assert [text for text in engine.tokenizer.texts if text != USUAL] == [each.prompt for each in longs]


async def test_brief_requests_reach_the_engine_in_order(harness: Harness, backend: Backend) -> None:
    requests = [asking(prompt=f"{i}") for i in range(20)]
    for request in requests:
        await submit(backend, request)
    engine = GatedEncoding()
    async with harness.worker(engine):
        for request in requests:
            await answer(backend, request.id)
    assert engine.tokenizer.texts == [str(i) for i in range(20)]


async def test_what_is_cancelled_while_it_is_tokenized_is_not_run(harness: Harness, backend: Backend) -> None:
    engine = GatedEncoding()
    slow, other = asking(prompt=TEXT), asking(prompt="other")
    async with harness.worker(engine) as worker:
        await submit(backend, slow)
        await until(lambda: len(engine.tokenizer.texts) == 1)
        await backend.token_log.close(slow.id)
        await until(lambda: not worker._by_job)
        engine.tokenizer.gate.set()
        await submit(backend, other)
        assert told(await answer(backend, other.id)) == foretold(other)
        assert len(await answer(backend, slow.id)) == 1
        assert not engine.has_work()
