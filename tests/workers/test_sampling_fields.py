"""A worker continues an answer with vLLM's sampling fields from the tokens of a lost worker."""

from __future__ import annotations

import msgspec
import pytest

from shared.backend import Backend
from shared.protocol import Message, Request, SamplingParams, Token, TokenEvent
from shared.queue.interface import Room
from shared.token_log.interface import Append
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import load
from tests.support.fakes import MODEL, answer, lapse, make_request, submit
from tests.support.worker_harness import Harness
from workers.engine.engine import Engine

PARAMS = SamplingParams(
    temperature=1.2,
    seed=-2,
    n=2,
    max_tokens=100_000,
    min_tokens=12,
    stop=("e", "\N{REPLACEMENT CHARACTER}"),
    stop_token_ids=tuple(range(0, 272, 9)),
    bad_words=tuple(map(chr, range(65, 127))),
    allowed_token_ids=tuple(range(20, 270)),
    include_stop_str_in_output=True,
    skip_special_tokens=False,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"]), max_model_len=96)


def fresh() -> Request:
    chat = (Message("user", "a mill"),)
    return msgspec.structs.replace(make_request(), prompt=None, messages=chat, params=PARAMS)


async def tokens_of(backend: Backend, request: Request) -> list[Token]:
    events = await answer(backend, request.id)
    assert events[-1].terminal is not None and events[-1].terminal.error is None
    return [token for event in events for token in event.tokens]


async def test_taken_over_answer_has_the_same_tokens(harness: Harness, backend: Backend, engine: Engine) -> None:
    whole = fresh()
    await submit(backend, whole)
    async with harness.worker(engine):
        expected = await tokens_of(backend, whole)
    assert len(expected) > 24
    prompt = tuple(engine.tokenizer.encode_chat(whole.messages or ()))
    for done in (1, 6, 13, len(expected) - 1):
        request = fresh()
        await submit(backend, request)
        await backend.transport.pull(MODEL, "dead", Room.all(2))
        await lapse(backend)
        [lease] = await backend.token_log.acquire([request.id], "dead")
        assert lease is not None
        event = TokenEvent(0, tuple(expected[:done]))
        await backend.token_log.append([Append(lease, event, len(prompt), prompt)])
        async with harness.worker(engine):
            found = await tokens_of(backend, request)
        for choice in range(2):
            assert [t for t in found if t.choice == choice] == [t for t in expected if t.choice == choice]
