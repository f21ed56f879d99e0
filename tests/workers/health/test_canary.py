"""Canaries of idle workers: they prove that the engine computes, and leave no trace elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.errors import EngineFailed
from tests.support.fakes import MODEL, answer, make_request, submit
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import (
    GatedEngine,
    Harness,
    RecordingEngine,
    answer_tokens,
    expected_tokens,
    wait_until,
)
from workers.engine.interface import EngineOutput, EngineRequest
from workers.health.watchdog import EngineHung
from workers.scripted_engine import ScriptedEngine

INTERVAL_S = 0.01


@pytest.fixture
def harness(harness: Harness) -> Harness:
    harness.settings = harness.settings.model_copy(update={"canary_interval": INTERVAL_S})
    return harness


def canaries(harness: Harness, outcome: str) -> float:
    name = "headrace_worker_canaries_total"
    return harness.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


async def run_until_hung(harness: Harness, engine: ScriptedEngine) -> None:
    async with asyncio.timeout(LIMIT_S):
        with pytest.RaisesGroup(pytest.RaisesExc(EngineHung, match="canary"), flatten_subgroups=True):
            await harness.make(engine).run()


async def test_an_idle_worker_runs_canaries_that_leave_no_trace(harness: Harness, backend: Backend) -> None:
    engine = RecordingEngine()
    async with harness.worker(engine):
        await wait_until(lambda: canaries(harness, "completed") >= 3)
    assert [request.id for request in engine.requests[:3]] == ["canary/1", "canary/2", "canary/3"]
    assert {request.params.max_tokens for request in engine.requests} == {1}
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)
    assert [key async for key in backend.redis.scan_iter("*canary*")] == []
    assert harness.metrics.registry.get_sample_value("headrace_worker_tokens_total") is None


class CrowdedEngine(ScriptedEngine):
    """Engine that counts the requests that were added beside another one."""

    def __init__(self) -> None:
        super().__init__()
        self.neighbours = 0

    def add(self, request: EngineRequest) -> None:
        self.neighbours += self.has_work()
        super().add(request)


async def test_a_busy_worker_runs_no_canary(harness: Harness, backend: Backend) -> None:
    """Given a request that gives a token less often than canaries run, none runs beside it."""
    engine = CrowdedEngine()
    request = make_request("[pace 30]", max_tokens=12)
    await submit(backend, request)
    async with harness.worker(engine):
        assert answer_tokens(await answer(backend, request.id)) == expected_tokens(request)
        before = canaries(harness, "completed")
        await wait_until(lambda: canaries(harness, "completed") > before)
    assert engine.neighbours <= 1  # the first canary may begin together with the request


@pytest.mark.parametrize("task", ["generate", "embed", "classify"])
async def test_a_canary_does_the_work_of_the_model(harness: Harness, task: str) -> None:
    engine = RecordingEngine()
    engine.task = task  # type: ignore[assignment]  parametrized
    async with harness.worker(engine):
        await wait_until(lambda: canaries(harness, "completed") >= 1)
    assert (engine.requests[0].lengths == (len("Hello"),)) is (task != "generate")


async def test_a_runtime_without_a_tokenizer_gets_the_text(harness: Harness) -> None:
    engine = RecordingEngine()
    engine.tokenizer = None  # type: ignore[assignment]  declared by its initial value
    async with harness.worker(engine):
        await wait_until(lambda: canaries(harness, "completed") >= 1)
    assert engine.requests[0].source is not None
    assert engine.requests[0].source.request.prompt == "Hello"


class BrokenKernel(ScriptedEngine):
    """Engine whose every request fails, though its steps return."""

    def step(self) -> list[EngineOutput]:
        return [EngineOutput(output.job_id, (), True, EngineFailed("NaN")) for output in super().step()]


async def test_a_canary_that_fails_ends_the_worker(harness: Harness, backend: Backend) -> None:
    await run_until_hung(harness, BrokenKernel())
    assert [worker.state for worker in await backend.registry.workers()] == ["hung"]
    assert (canaries(harness, "completed"), canaries(harness, "failed")) == (0, 1)


async def test_a_canary_without_an_answer_ends_the_worker(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an engine whose steps return without ever computing the canary."""
    monkeypatch.setattr("workers.health.canary.CANARY_LIMIT_S", 0.1)
    await run_until_hung(harness, GatedEngine(limit=0))
    assert canaries(harness, "failed") == 1
