"""Gates and surveys of queues, of each kind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from shared.backend import Backend
from shared.errors import Conflict, QueueDraining, TenantQueueDraining
from shared.protocol import PriorityClass
from shared.queue.interface import Room
from shared.queue.survey import MAX_GATES, view_of
from shared.redis import keys
from shared.settings import Settings
from tests.support.backends import opened
from tests.support.fakes import MODEL, ended, lapse, make_request, submit
from tests.support.queue_calls import ids, pull
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S


async def publish(backend: Backend, tenant: str = "default", **fields: object) -> str:
    return (await backend.transport.publish(make_request(tenant=tenant, **fields))).job_id


async def test_workers_take_nothing_of_a_paused_model(backend: Backend) -> None:
    await backend.queues.set_gate(MODEL, "paused")
    job_id = await publish(backend)
    pulled = await backend.transport.pull(MODEL, "a", Room.all(8))
    assert (pulled.found, pulled.more, pulled.spared) == ([], False, False)
    async with backend.live.subscribe(keys.wake_channel(MODEL)) as woken:
        await backend.queues.set_gate(MODEL, "open")
        assert await woken.get(LIMIT_S) == b"published"
    assert ids(await pull(backend.transport, 8)) == [job_id]


async def test_a_paused_tenant_waits_while_others_are_served(backend: Backend) -> None:
    await backend.queues.set_gate(MODEL, "paused", "slow")
    waiting = [await publish(backend, "slow") for _ in range(2)]
    served = await publish(backend, "fast", priority=PriorityClass.BATCH)
    pulled = await backend.transport.pull(MODEL, "a", Room.all(8))
    assert ([each.claim.job_id for each in pulled.found], pulled.more) == ([served], False)
    await backend.queues.set_gate(MODEL, "open", "slow")
    assert ids(await pull(backend.transport, 8)) == waiting


async def test_a_resumed_tenant_gains_nothing_by_its_pause(settings: Settings) -> None:
    """Else it would be served alone until it had caught up with what the others were served meanwhile."""
    roomy = settings.model_copy(update={"queue_depth": 1000, "tenant_queue_depth": 1000})
    for kind in ("redis", "memory"):
        backend = await opened(kind, roomy)
        for tenant in ("a", "b"):
            for _ in range(20):
                await publish(backend, tenant)
        await backend.queues.set_gate(MODEL, "paused", "a")
        assert {each.request.tenant for each in await pull(backend.transport, 10)} == {"b"}
        await backend.queues.set_gate(MODEL, "open", "a")
        taken = Counter(each.request.tenant for each in await pull(backend.transport, 10))
        assert 4 <= taken["a"] <= 6
        await backend.close()


async def test_a_class_gains_nothing_by_the_pause_of_its_tenant(settings: Settings) -> None:
    """Else the next tenant of the class would be served for what the paused one missed."""
    roomy = settings.model_copy(update={"queue_depth": 1000, "tenant_queue_depth": 1000})
    for kind in ("redis", "memory"):
        backend = await opened(kind, roomy)
        await backend.queues.set_gate(MODEL, "paused", "slow")
        await publish(backend, "slow", priority=PriorityClass.BATCH)
        for _ in range(100):
            await publish(backend, "fast", priority=PriorityClass.INTERACTIVE)
        for _ in range(80):
            await pull(backend.transport, 1)
        for _ in range(10):
            await publish(backend, "late", priority=PriorityClass.BATCH)
        taken = [each.request.tenant for each in await pull(backend.transport, 10)]
        assert taken.count("late") <= 1  # its weight is a sixteenth of the other's
        await backend.close()


async def test_what_is_paused_delays_no_start(backend: Backend) -> None:
    """A request with a target is not refused for others that no worker may take, nor while it is paused itself."""
    await pull(backend.transport, 1)
    await publish(backend)
    [delivery] = await pull(backend.transport, 1)
    await backend.transport.acknowledge([delivery.claim])
    await backend.queues.set_gate(MODEL, "paused", "slow")
    for _ in range(2):
        await publish(backend, "slow", priority=PriorityClass.BATCH)
    hurried = {"created_at": await backend.token_log.now(), "ttft_target": 0.5, "refuse_late": True}
    await publish(backend, "fast", **hurried)
    await backend.queues.set_gate(MODEL, "paused")
    await publish(backend, "fast", **hurried)


async def test_a_draining_queue_refuses_and_serves_what_waits(backend: Backend) -> None:
    job_id = await publish(backend)
    await backend.queues.set_gate(MODEL, "draining")
    with pytest.raises(QueueDraining) as refused:
        await publish(backend)
    assert (refused.value.status, refused.value.retry_after, refused.value.retryable) == (503, 10.0, True)
    assert ids(await pull(backend.transport, 8)) == [job_id]


async def test_a_draining_tenant_is_refused_and_others_are_not(backend: Backend) -> None:
    await backend.queues.set_gate(MODEL, "draining", "default")
    with pytest.raises(TenantQueueDraining):
        await publish(backend)
    await publish(backend, "other")
    await backend.queues.set_gate(MODEL, "open", "default")
    await publish(backend)


async def test_deadlines_and_discards_apply_while_paused(backend: Backend) -> None:
    await backend.queues.set_gate(MODEL, "paused")
    ticket = await backend.transport.publish(make_request(deadline=1.0))
    assert await backend.transport.overdue(MODEL, 8) == [ticket.job_id]
    await backend.transport.discard(ticket)
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_a_running_request_is_taken_over_while_paused(settings: Settings) -> None:
    backend = await opened("redis", settings)
    job_id = await publish(backend)
    await pull(backend.transport, 1)
    await backend.queues.set_gate(MODEL, "paused")
    await lapse(backend)
    assert ids((await backend.transport.claim(MODEL, "b", Room.all(1))).found) == [job_id]
    await backend.close()


async def test_a_wait_is_unknown_while_paused(backend: Backend) -> None:
    await publish(backend)
    [delivery] = await pull(backend.transport, 1)
    await backend.transport.acknowledge([delivery.claim])
    ticket = await backend.transport.publish(make_request())
    await backend.queues.set_gate(MODEL, "paused", "default")
    outlook = await backend.transport.outlook(ticket)
    assert outlook is not None
    assert (outlook.position, outlook.wait) == (1, None)


async def test_gates_outlive_processes(settings: Settings, backend: Backend) -> None:
    if backend.server is None:
        return  # nothing in memory does
    await backend.queues.set_gate(MODEL, "paused")
    again = Backend.open(settings)
    assert (await again.queues.survey(MODEL, 8)).gate == "paused"
    await again.close()


async def test_closed_queues_are_those_whose_model_is_not_open(backend: Backend) -> None:
    await backend.queues.set_gate("slow", "paused")
    await backend.queues.set_gate("gone", "draining")
    await backend.queues.set_gate(MODEL, "paused", "tenant")
    assert await backend.queues.closed([MODEL, "slow", "gone"]) == {"slow": "paused", "gone": "draining"}
    assert await backend.queues.closed([]) == {}


async def test_the_number_of_gates_is_bounded(backend: Backend) -> None:
    for i in range(MAX_GATES):
        await backend.queues.set_gate(MODEL, "paused", f"t{i}")
    with pytest.raises(Conflict):
        await backend.queues.set_gate(MODEL, "paused", "one-more")
    await backend.queues.set_gate(MODEL, "draining", "t1")


async def test_a_survey_shows_shares_and_ages(backend: Backend) -> None:
    for tenant, priority in (
        ("a", PriorityClass.INTERACTIVE),
        ("b", PriorityClass.BATCH),
        ("b", PriorityClass.BATCH),
    ):
        await publish(backend, tenant, priority=priority)
    await pull(backend.transport, 2)
    survey = await backend.queues.survey(MODEL, 8)
    view = view_of(MODEL, survey, {"a": 1, "b": 1})
    assert (view.state, view.waiting, view.held, view.truncated) == ("open", 1, 2, False)
    assert [(each.priority, each.waiting, each.held, each.share) for each in view.classes] == [
        ("interactive", 0, 1, 0.5),
        ("standard", 0, 0, 0.0),
        ("batch", 1, 1, 0.5),
    ]
    tenants = {each.tenant: each for each in view.tenants}
    assert (tenants["a"].weight_share, tenants["b"].weight_share) == (round(16 / 17, 4), round(1 / 17, 4))
    assert (tenants["a"].waiting, tenants["b"].waiting) == (0, 1)
    assert tenants["b"].oldest_age >= 0
    few = view_of(MODEL, survey, {}, 1)
    assert ([each.tenant for each in few.tenants], few.truncated) == ([view.tenants[0].tenant], True)
    assert few.classes == view.classes  # of all tenants


async def test_a_tenant_is_known_while_it_matters(backend: Backend) -> None:
    await publish(backend, "waits")
    await backend.queues.set_gate(MODEL, "paused", "paused")
    known = [await backend.queues.knows(MODEL, each) for each in ("waits", "paused", "wait", "")]
    assert known == [True, True, False, False]
    await pull(backend.transport, 1)
    assert await backend.queues.knows(MODEL, "waits")  # it was served


async def test_shares_are_unknown_if_the_survey_left_out_tenants(backend: Backend) -> None:
    for tenant in ("a", "b", "c"):
        await publish(backend, tenant, priority=PriorityClass.BATCH)
    view = view_of(MODEL, await backend.queues.survey(MODEL, 1), {})
    assert (len(view.tenants), view.truncated) == (1, True)
    assert [(each.waiting, each.weight_share, each.share) for each in view.classes] == [
        (0, None, None),
        (0, None, None),
        (3, None, None),
    ]
    assert (view.tenants[0].weight_share, view.tenants[0].share) == (None, None)


async def test_recent_requests_are_newest_first_in_pages(backend: Backend) -> None:
    made = [await publish(backend) for _ in range(4)]
    if backend.server is not None:  # what another program wrote makes no page short
        for field in ("i", "x"):
            await backend.redis.xadd(keys.transport(MODEL)[-1], {field: "no id"})
    first = await backend.queues.recent(MODEL, 3)
    assert [each.job_id for each in first] == made[:0:-1]
    rest = await backend.queues.recent(MODEL, 3, before=first[-1].cursor)
    assert [each.job_id for each in rest] == made[:1]
    again = await backend.queues.recent(MODEL, 1, before=first[-1].cursor, inclusive=True)
    assert again == first[-1:]
    assert set(await backend.queues.holding(MODEL, 8)) == set()
    held = ids(await pull(backend.transport, 2))
    assert set(await backend.queues.holding(MODEL, 8)) == set(held)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "memory"])
async def test_nothing_is_lost_while_gates_change_under_load(kind: str, settings: Settings) -> None:
    """Every request that was accepted ends exactly once, and those that were refused leave no trace."""
    backend = await opened(kind, settings.model_copy(update={"queue_depth": 1000, "tenant_queue_depth": 1000}))
    worker, order, accepted, refused = ScriptedWorker(backend), random.Random(7), list[str](), 0

    async def submit_all() -> None:
        nonlocal refused
        for i in range(200):
            request = make_request(tenant=f"t{i % 3}", priority=order.choice(list(PriorityClass)))
            try:
                await submit(backend, request)
            except (QueueDraining, TenantQueueDraining):
                refused += 1
            else:
                accepted.append(request.id)
            await asyncio.sleep(0)

    async def change_gates() -> None:
        for _ in range(60):
            gate = order.choice(("open", "paused", "draining"))
            await backend.queues.set_gate(MODEL, gate, order.choice((None, "t0", "t1")))
            await asyncio.sleep(0)
        for tenant in (None, "t0", "t1"):
            await backend.queues.set_gate(MODEL, "open", tenant)

    async def serve() -> None:
        while True:
            await worker.answer("x")

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        serving = [group.create_task(serve()) for _ in range(2)]
        for each in (group.create_task(submit_all()), group.create_task(change_gates())):
            await each
        states = [(await ended(backend, job_id)).state.value for job_id in accepted]
        for task in serving:
            task.cancel()
    assert states == ["completed"] * len(accepted)
    assert refused + len(accepted) == 200
    assert refused
    depth = await backend.transport.depth(MODEL)
    assert (depth.waiting, depth.held) == (0, 0)
    await backend.close()
