"""Worker and constrained answers: grammars are compiled beside other requests."""

from __future__ import annotations

from concurrent.futures import Future

import msgspec
import pytest

from shared.backend import Backend
from shared.protocol import Request, Structured, Tools
from tests.support.fakes import answer, make_request, submit
from tests.support.worker_harness import (
    Harness,
    RecordingEngine,
    answer_tokens,
    expected_tokens,
    wait_until,
)
from workers.engine.interface import Constraint


class ManualCompiler:
    """Compiler whose results are set by the test."""

    def __init__(self) -> None:
        self.started: list[Future[Constraint]] = []

    def start(self, form: Structured | Tools) -> Future[Constraint]:
        self.started.append(Future())
        return self.started[-1]


def with_regex(request: Request) -> Request:
    params = msgspec.structs.replace(request.params, structured_outputs=Structured(regex="a"))
    return msgspec.structs.replace(request, params=params)


async def test_a_slow_grammar_delays_no_other_request(harness: Harness, backend: Backend) -> None:
    engine = RecordingEngine()
    engine.constraints = ManualCompiler()
    slow, other = with_regex(make_request("slow")), make_request("other")
    async with harness.worker(engine):
        await submit(backend, slow)
        await wait_until(lambda: len(engine.constraints.started) == 1)
        await submit(backend, other)
        assert answer_tokens(await answer(backend, other.id)) == expected_tokens(other)
        engine.constraints.started[0].set_result(Constraint(lambda: None))
        assert answer_tokens(await answer(backend, slow.id)) == expected_tokens(slow)


async def test_a_request_cancelled_while_compiling_is_not_run(harness: Harness, backend: Backend) -> None:
    engine = RecordingEngine()
    engine.constraints = compiler = ManualCompiler()
    request = with_regex(make_request())
    async with harness.worker(engine) as worker:
        await submit(backend, request)
        await wait_until(lambda: len(compiler.started) == 1)
        await backend.token_log.close(request.id)
        await wait_until(lambda: not worker._by_job)
        compiler.started[0].set_result(Constraint(lambda: pytest.fail("a cancelled request was run")))
        later = make_request()
        await submit(backend, later)
        await answer(backend, later.id)
    assert [run.id for run in engine.requests] == [f"{later.id}/1"]


async def test_an_engine_without_grammars_refuses_constraints(harness: Harness, backend: Backend) -> None:
    request = with_regex(make_request())
    async with harness.worker():
        await submit(backend, request)
        [end] = [event.terminal for event in await answer(backend, request.id)]
    assert end is not None
    assert end.error is not None
    assert end.error.param == "structured_outputs"
