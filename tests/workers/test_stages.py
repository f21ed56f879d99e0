"""An exception in any stage of the worker ends the request that caused it, and no other."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.backend import Backend
from shared.protocol import (
    Detokenize,
    Embed,
    Function,
    Message,
    Request,
    RequestState,
    SamplingParams,
    Structured,
    Terminal,
    Tokenize,
    ToolCall,
    Tools,
)
from shared.redis.embedded import EmbeddedServer
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import load, run
from tests.support.fakes import MODEL, answer, make_request, submit
from tests.support.worker_harness import Harness, answer_tokens, wait_for_tokens
from workers.engine import token_step
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec
from workers.engine.text.detokenizer import TextStream

BOOM = "boom"
PROMPT, LENGTH = "a river runs", 120
RECURSING = (
    "{% macro again(x) %}{{ again(x) }}{% endmacro %}{% for m in messages %}"
    "{% if 'boom' in m.content %}{{ again(1) }}{% endif %}{{ m.role + ':' + m.content }}"
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
)
Break = Callable[[Engine, pytest.MonkeyPatch], None]


class PanicException(BaseException):
    """The exception that a panic in Rust raises in Python."""


PanicException.__module__ = "pyo3_runtime"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny model whose chat template supports tools, and recurses endlessly on the word "boom"."""
    made = save_checkpoint(tmp_path_factory.mktemp("stages"), CONFIGS["llama"])
    (made / "chat_template.jinja").write_text(RECURSING)
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


class Neighbour:
    """Submits requests beside a stream that they must not disturb."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def end_of(self, request: Request) -> Terminal:
        """Submit a request and return its terminal event."""
        await submit(self.backend, request)
        async with asyncio.timeout(60):
            terminal = (await answer(self.backend, request.id))[-1].terminal
        assert terminal is not None
        return terminal


def streaming() -> Request:
    greedy = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    return msgspec.structs.replace(make_request(PROMPT), params=greedy)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[int]:
    """Tokens of the stream when it runs alone."""
    return run(engine, [engine.tokenizer.encode(PROMPT)], streaming().params)[0]


@pytest.fixture
async def neighbour(
    harness: Harness, backend: Backend, engine: Engine, alone: list[int]
) -> AsyncIterator[Neighbour]:
    """Neighbour whose stream must end as if it ran alone, on the worker that started it."""
    worker = harness.make(engine)
    running = asyncio.create_task(worker.run())
    stream = streaming()
    await submit(backend, stream)
    await wait_for_tokens(backend, stream, 1)
    yield Neighbour(backend)
    async with asyncio.timeout(60):
        assert answer_tokens(await answer(backend, stream.id)) == alone
    assert not running.done()
    worker.drain()
    await running


def raising(
    error: BaseException, *, when: Callable[..., bool], instead_of: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise error
        return instead_of(*args, **kwargs)

    return call


def has_boom(text: Any, *_: Any, **__: Any) -> bool:
    return isinstance(text, str) and BOOM in text


def break_tokenizer(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine.tokenizer, "encode", raising(KeyError(BOOM), when=has_boom, instead_of=engine.tokenizer.encode)
    )


def break_tokenizer_in_rust(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine.tokenizer, "encode", raising(PanicException(BOOM), when=has_boom, instead_of=engine.tokenizer.encode)
    )


def break_grammar(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    broken: Future[Any] = Future()
    broken.set_exception(ZeroDivisionError(BOOM))
    patch.setattr(engine.constraints, "start", lambda form: broken)


def break_grammar_at_once(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def start(form: ConstraintSpec) -> Future[Any]:
        raise UnicodeEncodeError("utf-8", BOOM, 0, 1, "no")

    patch.setattr(engine.constraints, "start", start)


def break_admission(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine._sequences,
        "build",
        raising(MemoryError(), when=lambda r: BOOM in r.params.stop, instead_of=engine._sequences.build),
    )


def break_sampler(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def when(logits: Any, sequences: Any, *_: Any) -> bool:
        return any(BOOM in each.params.stop for each in sequences)

    patch.setattr(token_step, "sample", raising(OverflowError(BOOM), when=when, instead_of=token_step.sample))


def break_detokenizer(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def stream(params: SamplingParams, *, calls: bool) -> TextStream:
        made = tokenizer_stream(params, calls=calls)
        if BOOM in params.stop:
            made.feed = raising(IndexError(BOOM), when=lambda token, **_: True, instead_of=made.feed)  # type: ignore[method-assign]
        return made

    tokenizer_stream = engine.tokenizer.stream
    patch.setattr(engine.tokenizer, "stream", stream)


def break_pieces(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """Break `token_bytes`, which only log-probabilities need."""
    patch.setattr(
        engine.tokenizer,
        "token_bytes",
        raising(ValueError(BOOM), when=lambda *_, **__: True, instead_of=lambda *_, **__: b""),
    )


def break_echo(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine.tokenizer, "token_texts", raising(ValueError(BOOM), when=lambda ids: True, instead_of=lambda _: [])
    )


def break_nothing(engine: Engine, patch: pytest.MonkeyPatch) -> None: ...


def request_with(**fields: Any) -> Request:
    """Return a request for an answer, with some fields or parameters changed."""
    params = SamplingParams(**{"max_tokens": 3, **fields.pop("params", {})})
    return msgspec.structs.replace(make_request("x"), params=params, **fields)


FAULTS: list[tuple[str, Break, dict[str, Any]]] = [
    ("template", break_nothing, {"prompt": None, "messages": (Message("user", BOOM),)}),
    ("tokenizer", break_tokenizer, {"prompt": BOOM}),
    ("tokenizer in a thread", break_tokenizer, {"prompt": BOOM * 1000}),
    ("tokenizer in Rust", break_tokenizer_in_rust, {"prompt": BOOM}),
    ("grammar", break_grammar, {"params": {"structured_outputs": Structured(regex="a")}}),
    ("grammar at once", break_grammar_at_once, {"params": {"structured_outputs": Structured(regex="a")}}),
    ("admission", break_admission, {"params": {"stop": (BOOM,)}}),
    ("sampler", break_sampler, {"params": {"stop": (BOOM,)}}),
    ("detokenizer", break_detokenizer, {"params": {"stop": (BOOM,)}}),
    ("log-probabilities", break_pieces, {"params": {"logprobs": 2}}),
    ("echo", break_echo, {"params": {"echo": True}}),
]


@pytest.mark.parametrize(("breaking", "fields"), [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS])
async def test_a_fault_in_a_stage_ends_its_request_alone(
    neighbour: Neighbour, engine: Engine, monkeypatch: pytest.MonkeyPatch, breaking: Break, fields: dict[str, Any]
) -> None:
    request = request_with(**fields)
    breaking(engine, monkeypatch)
    end = await neighbour.end_of(request)
    assert end.error is not None
    assert end.error.code == "engine_failed"
    assert BOOM not in end.error.message
    assert [letter.id for letter in await neighbour.backend.dead_letters.list()] == [request.id]
    assert (await neighbour.end_of(request_with())).state is RequestState.COMPLETED


DEEP, LONE = "[" * 5000, '{"a":"\\ud800"}'


def with_call(arguments: str, *, name: str = "f") -> dict[str, Any]:
    call = Message("assistant", "", tool_calls=(ToolCall("c", name, arguments),))
    return {"prompt": None, "messages": (Message("user", "u"), call, Message("tool", arguments, tool_call_id="c"))}


def with_tool(parameters: str) -> dict[str, Any]:
    return {**with_call("{}"), "tools": Tools((Function("f", "d", parameters),))}


def with_constraint(**what: Any) -> dict[str, Any]:
    return {"params": {"structured_outputs": Structured(**what)}}


TOKEN_LISTS = ("stop_token_ids", "allowed_token_ids")
HOSTILE: list[dict[str, Any]] = [
    *(
        with_call(each)
        for each in (LONE, DEEP, '{"a":' * 3000, "1e999", "9" * 5000, '"' + "[" * 5000, "\\", "null")
    ),
    with_call("{}", name="\0"),
    *(
        with_tool(each)
        for each in (LONE, DEEP, "null", "[]", "{", '{"type": 5}', '{"properties": {"\\ud800": {}}}')
    ),
    *(with_constraint(json_schema=each) for each in (LONE, DEEP, "{", "[]", '{"const": "\\udfff"}')),
    *(
        with_constraint(regex="("),
        with_constraint(grammar="root ::="),
        with_constraint(choice=("",)),
        with_constraint(),
        with_constraint(json_object=True, regex="a"),
    ),
    *({"params": {"n": each}} for each in (0, -1, 1000)),
    *({"params": {"temperature": each}} for each in (-1.0, 1e308)),
    *({"params": {"repetition_penalty": each}} for each in (0.0, -1.0)),
    *({"params": {"top_k": each}} for each in (-5, 2**62)),
    *({"params": {"top_p": each}} for each in (-1.0, 0.0, 5e-324)),
    *({"params": {"min_p": each}} for each in (-1.0, 5.0)),
    *({"params": {"logit_bias": each}} for each in ({-5: 1.0}, {-(10**9): 1.0}, {10**9: 1.0}, {1: 1e308})),
    *({"params": {"seed": each}} for each in (-1, 2**63 - 1)),
    *({"params": {"stop": each}} for each in (("",), ("x" * 10_000,), ("\0",))),
    *({"params": {"logprobs": each}} for each in (-1, 10**6)),
    *({"params": {name: (each,)}} for name in TOKEN_LISTS for each in (-1, 10**9, 2**62)),
    *({"params": {"bad_words": each}} for each in (("",), (" ",), ("\0",), ("x" * 10_000,), ("x",) * 2_000)),
    *({"params": {"max_tokens": each}} for each in (-1, 0)),
    *({"params": {"min_tokens": each}} for each in (-1, 5, 2**40)),
    *({"prompt": each} for each in ((), (-1,), (10**9,), (2**62,), "", "\0", "\U0010ffff", "x" * 2_000)),
    *({"prompt": None, "messages": each} for each in ((), (Message("wizard", ""),), (Message("tool", "x"),))),
    {"prompt": None, "messages": (Message("user", "u", name="\U0010ffff"), Message("system", "\0"))},
    *({"work": each, "prompt": None} for each in (Embed(()), Embed(("",)), Embed(("x",), -1), Tokenize())),
    *({"work": Detokenize(), "prompt": each} for each in ((), (-1,), (2**62,), "text")),
    {"prompt": None},
    {"deadline": 1e308},
    {"deadline": -1.0},
    {"tenant": "\0:{}" * 100, "user": "\0" * 1000, "version": 99},
]


@pytest.fixture
def process(folder: Path, valkey: EmbeddedServer) -> Iterator[subprocess.Popen[bytes]]:
    """Worker process with the tiny model."""
    given = {"MODEL": str(folder), "SERVED_MODEL_NAME": MODEL, "REDIS_URL": valkey.url}
    environment = {**os.environ, **{f"HEADRACE_{name}": value for name, value in given.items()}}
    started = subprocess.Popen([sys.executable, "-m", "headrace", "worker"], env=environment)
    yield started
    started.terminate()
    started.wait(60)


@pytest.mark.slow
async def test_hostile_requests_end_without_side_effects(
    process: subprocess.Popen[bytes], backend: Backend, alone: list[int]
) -> None:
    """Given requests that no front end admits, expect each to end, a whole stream, and a live worker."""
    stream, requests = streaming(), [request_with(**fields) for fields in HOSTILE]
    neighbour = Neighbour(backend)
    await submit(backend, stream)
    async with asyncio.timeout(120):
        await wait_for_tokens(backend, stream, 1)
    ends = await asyncio.gather(*(neighbour.end_of(request) for request in requests))
    assert answer_tokens(await answer(backend, stream.id)) == alone
    assert process.poll() is None
    assert [worker.pid for worker in await backend.registry.workers()] == [process.pid]
    codes = [end.error.code if end.error else "" for end in ends]
    assert [fields for fields, code in zip(HOSTILE, codes, strict=True) if code == "engine_failed"] == []
    assert set(codes) >= {"", "invalid_request", "context_length_exceeded", "deadline_exceeded"}
