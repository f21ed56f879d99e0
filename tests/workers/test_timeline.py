"""Timelines of requests that real workers run: takeovers and preemptions."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shared.backend import Backend
from shared.protocol import PriorityClass, Request, RunMark, SamplingParams, Token, new_job_id
from shared.queue.interface import Room
from shared.timeline.timeline import timeline_of
from shared.timeline.types import Timeline
from shared.token_log.interface import Append
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.fakes import MODEL, answer, lapse, make_request, submit, token_event
from tests.support.worker_harness import Harness
from workers.active_request import MARK_INTERVAL_S, ActiveRequest
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.waits import EngineWaits


async def timeline(backend: Backend, request: Request) -> Timeline:
    marks = await backend.token_log.marks(request.id)
    assert marks is not None
    return timeline_of(marks, await backend.token_log.now())


async def test_a_lost_worker_and_its_successor_appear(harness: Harness, backend: Backend) -> None:
    request = make_request("take me over", created_at=await backend.token_log.now())
    await submit(backend, request)
    assert len((await backend.transport.pull(MODEL, "dead", Room.all(1))).found) == 1
    [lease] = await backend.token_log.acquire([request.id], "dead")
    assert lease is not None
    await backend.token_log.append([Append(lease, token_event(0, "x", "y"), 12)])
    await lapse(backend)
    async with harness.worker(name="next"):
        await answer(backend, request.id)
    found = await timeline(backend, request)
    events = {event.name: event for event in found.events}
    assert "queued" in events, "the worker recorded the stay"
    assert (events["worker_lost"].worker, events["worker_lost"].tokens) == ("dead", 2)
    assert (events["taken_over"].worker, events["taken_over"].tokens) == ("next", 2)
    assert (found.workers_lost, found.completion_tokens) == (1, 8)
    names = [each.name for each in found.phases]
    assert names[names.index("lost") :][:2] == ["lost", "resuming"]


async def test_a_preemption_and_a_prefix_hit_appear(
    harness: Harness, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given blocks for one long request at a time, the batch request waits for the urgent one."""
    folder = save_checkpoint(tmp_path / "llama", CONFIGS["llama"])
    engine = Engine.load(EngineConfig(folder, num_kv_blocks=20, block_size=4, max_num_seqs=4))
    urgent, patient = PriorityClass.INTERACTIVE, PriorityClass.BATCH
    step, add, first_steps, urgent_added = engine.step, engine.add, iter(range(2)), threading.Event()

    def begin_one() -> list[EngineOutput]:
        if next(first_steps, None) is None and not urgent_added.wait(0.005):
            return []
        return step()

    def note_urgent(request: EngineRequest) -> None:
        add(request)
        if request.priority is urgent:
            urgent_added.set()

    monkeypatch.setattr(engine, "step", begin_one)
    monkeypatch.setattr(engine, "add", note_urgent)

    async def queued(priority: PriorityClass, first_token: int, max_tokens: int) -> Request:
        request = Request(
            id=new_job_id(),
            model=MODEL,
            prompt=tuple(range(first_token, first_token + 24)),
            params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0),
            priority=priority,
            created_at=await backend.token_log.now(),
        )
        await submit(backend, request)
        return request

    async with harness.worker(engine):
        requests = [await queued(patient, 1, 40), await queued(urgent, 50, 40)]
        for request in requests:
            await answer(backend, request.id)
        for _ in range(2):
            requests.append(await queued(urgent, 100, 2))
            await answer(backend, requests[-1].id)
    batch, interactive, cold, warm = [await timeline(backend, request) for request in requests]
    assert batch.preemptions >= 1
    [event] = [event for event in batch.events if event.name == "preempted"]
    assert event.count == batch.preemptions
    assert batch.totals.preemption > 0
    assert interactive.preemptions == 0
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 20), "whole blocks before the last token of the prompt"


def test_marks_of_a_run_ride_with_few_appends() -> None:
    """Given a clock, a mark goes with the first append, those after preemptions, and one per second."""
    active = ActiveRequest.unqueued(make_request())
    active.prompt = (1, 2, 3)

    def mark(seq: int, waits: EngineWaits | None = None) -> RunMark | None:
        token = Token(0, seq, "x")
        return active.append(EngineOutput(active.run_id, (token,), cached_tokens=2, waits=waits), now).mark

    now = 100.0
    assert mark(0, EngineWaits(0.5, 1, 0.25)) == RunMark(2, 0.0, 0.5, 1, 0.25, 0.25)
    assert mark(1) is None
    assert mark(2, EngineWaits(0.5, 2, 1.0)) == RunMark(2, 0.0, 0.5, 2, 1.0, 0.25)
    assert mark(3) is None
    now += MARK_INTERVAL_S
    assert mark(4) == RunMark(2, 0.0, 0.5, 2, 1.0, 0.25)
    assert mark(5) is None
