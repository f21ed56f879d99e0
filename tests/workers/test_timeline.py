"""Timelines of requests that real workers run: takeovers and preemptions."""

from __future__ import annotations

from pathlib import Path

from shared.backend import Backend
from shared.protocol import PriorityClass, Request, SamplingParams
from shared.queue.interface import Room
from shared.timeline.timeline import timeline_of
from shared.timeline.types import Timeline
from shared.token_log.interface import Append
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.fakes import MODEL, answer, lapse, make_request, submit, token_event
from tests.support.worker_harness import Harness
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine


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
    assert (events["worker_lost"].worker, events["worker_lost"].tokens) == ("dead", 2)
    assert (events["taken_over"].worker, events["taken_over"].tokens) == ("next", 2)
    assert (found.workers_lost, found.completion_tokens) == (1, 8)
    names = [each.name for each in found.phases]
    assert names[names.index("lost") :][:2] == ["lost", "resuming"]


async def test_a_preemption_and_a_prefix_hit_appear(harness: Harness, backend: Backend, tmp_path: Path) -> None:
    """Given blocks for one long request at a time, the batch request waits for the urgent one."""
    folder = save_checkpoint(tmp_path / "llama", CONFIGS["llama"])
    engine = Engine.load(EngineConfig(folder, num_kv_blocks=20, block_size=4, max_num_seqs=4))
    prompt = tuple(range(1, 25))
    found = []
    async with harness.worker(engine):
        for _ in range(2):
            requests = [
                Request(
                    id=make_request().id,
                    model=MODEL,
                    prompt=prompt if priority is PriorityClass.BATCH else prompt[::-1],
                    params=SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0),
                    priority=priority,
                    created_at=await backend.token_log.now(),
                )
                for priority in (PriorityClass.BATCH, PriorityClass.INTERACTIVE)
            ]
            for request in requests:
                await submit(backend, request)
            for request in requests:
                await answer(backend, request.id)
            found.append([await timeline(backend, request) for request in requests])
    batch = found[0][0]
    assert batch.preemptions >= 1
    [event] = [event for event in batch.events if event.name == "preempted"]
    assert event.count == batch.preemptions
    assert batch.totals.preemption > 0
    assert found[0][1].preemptions == 0
    assert found[1][1].cached_tokens > 0, "the second wave finds the first one's prompt"
