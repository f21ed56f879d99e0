"""Whatever a request makes its worker raise, in any stage, ends that request and no other."""

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
from tests.support.worker_harness import Harness, tokens_of, told
from workers.engine import engine as engine_module
from workers.engine.engine import Engine
from workers.engine.interface import Form
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
    """As a panic in Rust comes to Python."""


PanicException.__module__ = "pyo3_runtime"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose chat template knows tools, and recurses without end over one word."""
    made = save_checkpoint(tmp_path_factory.mktemp("stages"), CONFIGS["llama"])
    (made / "chat_template.jinja").write_text(RECURSING)
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


class Neighbour:
    """Asks beside a stream that must not be disturbed."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def end_of(self, request: Request) -> Terminal:
        """How a request ends beside the stream."""
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
    """The stream's tokens, undisturbed."""
    return run(engine, [engine.tokenizer.encode(PROMPT)], streaming().params)[0]


@pytest.fixture
async def neighbour(
    harness: Harness, backend: Backend, engine: Engine, alone: list[int]
) -> AsyncIterator[Neighbour]:
    """Its stream must come to its end as if it were alone, by the worker that began it."""
    worker = harness.make(engine)
    running = asyncio.create_task(worker.run())
    stream = streaming()
    await submit(backend, stream)
    await tokens_of(backend, stream, 1)
    yield Neighbour(backend)
    async with asyncio.timeout(60):
        assert told(await answer(backend, stream.id)) == alone
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


def of_text(text: Any, *_: Any, **__: Any) -> bool:
    return isinstance(text, str) and BOOM in text


def break_tokenizer(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine.tokenizer, "encode", raising(KeyError(BOOM), when=of_text, instead_of=engine.tokenizer.encode)
    )


def break_tokenizer_in_rust(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine.tokenizer, "encode", raising(PanicException(BOOM), when=of_text, instead_of=engine.tokenizer.encode)
    )


def break_grammar(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    broken: Future[Any] = Future()
    broken.set_exception(ZeroDivisionError(BOOM))
    patch.setattr(engine.constraints, "start", lambda form: broken)


def break_grammar_at_once(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def start(form: Form) -> Future[Any]:
        raise UnicodeEncodeError("utf-8", BOOM, 0, 1, "no")

    patch.setattr(engine.constraints, "start", start)


def break_admission(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine,
        "_sequence",
        raising(MemoryError(), when=lambda r, c: BOOM in r.params.stop, instead_of=engine._sequence),
    )


def break_sampler(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def when(logits: Any, sequences: Any, mask: Any) -> bool:
        return any(BOOM in each.params.stop for each in sequences)

    patch.setattr(engine_module, "sample", raising(OverflowError(BOOM), when=when, instead_of=engine_module.sample))


def break_detokenizer(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def stream(stop: tuple[str, ...], *, calls: bool) -> TextStream:
        made = tokenizer_stream(stop, calls=calls)
        if BOOM in stop:
            made.feed = raising(IndexError(BOOM), when=lambda token: True, instead_of=made.feed)  # type: ignore[method-assign]
        return made

    tokenizer_stream = engine.tokenizer.stream
    patch.setattr(engine.tokenizer, "stream", stream)


def break_pieces(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """Only who asks for log-probabilities needs them."""
    patch.setattr(
        engine.tokenizer, "piece", raising(ValueError(BOOM), when=lambda token: True, instead_of=lambda _: "")
    )


def break_echo(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        engine.tokenizer, "texts", raising(ValueError(BOOM), when=lambda ids: True, instead_of=lambda _: [])
    )


def nothing(engine: Engine, patch: pytest.MonkeyPatch) -> None: ...


def asking(**fields: Any) -> Request:
    """For an answer; a prompt or params as given."""
    params = SamplingParams(max_tokens=3, **fields.pop("params", {}))
    return msgspec.structs.replace(make_request("x"), params=params, **fields)


FAULTS: list[tuple[str, Break, dict[str, Any]]] = [
    ("template", nothing, {"prompt": None, "messages": (Message("user", BOOM),)}),
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
    request = asking(**fields)
    breaking(engine, monkeypatch)
    end = await neighbour.end_of(request)
    assert end.error is not None
    assert end.error.code == "engine_failed"
    assert BOOM not in end.error.message
    assert [letter.id for letter in await neighbour.backend.dead_letters.list()] == [request.id]
    assert (await neighbour.end_of(asking())).state is RequestState.COMPLETED


DEEP, LONE = "[" * 5000, '{"a":"\\ud800"}'


def calling(arguments: str, *, name: str = "f") -> dict[str, Any]:
    call = Message("assistant", "", tool_calls=(ToolCall("c", name, arguments),))
    return {"prompt": None, "messages": (Message("user", "u"), call, Message("tool", arguments, tool_call_id="c"))}


def tooled(parameters: str) -> dict[str, Any]:
    return {**calling("{}"), "tools": Tools((Function("f", "d", parameters),))}


def held(**what: Any) -> dict[str, Any]:
    return {"params": {"structured_outputs": Structured(**what)}}


HOSTILE: list[dict[str, Any]] = [
    *(calling(each) for each in (LONE, DEEP, '{"a":' * 3000, "1e999", "9" * 5000, '"' + "[" * 5000, "\\", "null")),
    calling("{}", name="\0"),
    *(tooled(each) for each in (LONE, DEEP, "null", "[]", "{", '{"type": 5}', '{"properties": {"\\ud800": {}}}')),
    *(held(json_schema=each) for each in (LONE, DEEP, "{", "[]", '{"const": "\\udfff"}')),
    *(held(regex="("), held(grammar="root ::="), held(choice=("",)), held(), held(json_object=True, regex="a")),
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
    """A worker process with the tiny model."""
    given = {"MODEL": str(folder), "SERVED_MODEL_NAME": MODEL, "REDIS_URL": valkey.url}
    environment = {**os.environ, **{f"HEADRACE_{name}": value for name, value in given.items()}}
    started = subprocess.Popen([sys.executable, "-m", "headrace", "worker"], env=environment)
    yield started
    started.terminate()
    started.wait(60)


@pytest.mark.slow
async def test_hostile_requests_end_and_disturb_nobody(
    process: subprocess.Popen[bytes], backend: Backend, alone: list[int]
) -> None:
    """Given requests that no front end admits, Expect an end of each, a stream whole, and the worker alive."""
    stream, requests = streaming(), [asking(**fields) for fields in HOSTILE]
    neighbour = Neighbour(backend)
    await submit(backend, stream)
    async with asyncio.timeout(120):
        await tokens_of(backend, stream, 1)
    ends = await asyncio.gather(*(neighbour.end_of(request) for request in requests))
    assert told(await answer(backend, stream.id)) == alone
    assert process.poll() is None
    assert [worker.pid for worker in await backend.registry.workers()] == [process.pid]
    codes = [end.error.code if end.error else "" for end in ends]
    assert [fields for fields, code in zip(HOSTILE, codes, strict=True) if code == "engine_failed"] == []
    assert set(codes) >= {"", "invalid_request", "context_length_exceeded", "deadline_exceeded"}
