"""Requests of one sequence go to one worker, under any policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from shared.backend import Backend
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Infer, Request, SequenceStep, Tensor
from shared.queue.interface import Room
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request

WORKERS = ("a", "b")


@pytest.fixture(autouse=True)
def fresh_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the router look at the workers before each request."""
    monkeypatch.setattr("shared.queue.router.HEARTBEATS_LIFE_S", 0.0)
    monkeypatch.setattr("shared.queue.router.LOADS_LIFE_S", 0.0)


@pytest.fixture(params=["redis", "memory"])
async def impatient(
    request: pytest.FixtureRequest, roomy: Settings, backend_of: Callable[..., Backend]
) -> AsyncIterator[Backend]:
    """Open a backend under `pull`, with two workers of a model with sequences, which wait for nothing else."""
    backend = await backend_of(request.param, roomy.model_copy(update={"routing_patience": 0.0}))
    backend.router.keep_sequences(MODEL)
    for worker in WORKERS:
        await join(backend, worker)
    yield backend


async def join(backend: Backend, worker: str) -> None:
    await backend.registry.beat(WorkerInfo(id=worker, pid=1, model=MODEL, state="ready"))
    await backend.transport.claim(MODEL, worker, Room.all(10))


def step(sequence: int | str, *, start: bool = False, end: bool = False) -> Request:
    tensor = Tensor("X", "INT8", (1,), b"\0")
    work = Infer(inputs=(tensor,), sequence=SequenceStep(sequence, start, end))
    return msgspec.structs.replace(make_request(), prompt=None, work=work)


async def taken(backend: Backend, worker: str) -> list[int | str]:
    """Let a worker pull, and return the sequences that it got requests of."""
    found = (await backend.transport.pull(MODEL, worker, Room.all(100))).found
    works = [delivery.request.work for delivery in found]
    return [work.sequence.id for work in works if isinstance(work, Infer) and work.sequence is not None]


async def test_a_sequence_has_one_worker(impatient: Backend) -> None:
    """Given 20 sequences, each worker gets whole ones, though both have room all the time."""
    for number in range(60):
        await impatient.transport.publish(step(number % 20, start=number < 20))
    by_worker: dict[str, list[int | str]] = {worker: [] for worker in WORKERS}
    for _ in range(3):
        for worker in WORKERS:
            by_worker[worker] += await taken(impatient, worker)
    first, second = (by_worker[worker] for worker in WORKERS)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(3 * list(range(20)))
    assert first
    assert second


async def test_a_sequence_stays_when_a_worker_joins(impatient: Backend) -> None:
    for number in range(20):
        await impatient.transport.publish(step(number, start=True))
    places = {sequence: worker for worker in WORKERS for sequence in await taken(impatient, worker)}
    await join(impatient, "c")
    for number in range(20):
        await impatient.transport.publish(step(number))
    assert await taken(impatient, "c") == []
    assert {sequence: worker for worker in WORKERS for sequence in await taken(impatient, worker)} == places


async def test_a_sequence_of_a_worker_that_left_goes_to_another(impatient: Backend) -> None:
    await impatient.transport.publish(step("s", start=True))
    [owner] = [worker for worker in WORKERS if await taken(impatient, worker)]
    [other] = [worker for worker in WORKERS if worker != owner]
    await impatient.transport.publish(step("s"))
    await impatient.transport.leave(MODEL, owner)
    assert await taken(impatient, other) == ["s"]


async def test_other_requests_of_the_model_go_to_any_worker(impatient: Backend) -> None:
    plain = [make_request() for _ in range(2)]
    for request in plain:
        await impatient.transport.publish(request)
    found = (await impatient.transport.pull(MODEL, "a", Room.all(1))).found
    found += (await impatient.transport.pull(MODEL, "b", Room.all(1))).found
    assert {delivery.request.id for delivery in found} == {request.id for request in plain}
