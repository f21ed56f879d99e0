"""The operator's side of a queue: gates, surveys and recent requests, on Redis and in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from shared.errors import Conflict
from shared.protocol import PriorityClass
from shared.queue.memory import MemoryTransport
from shared.queue.redis_streams import SCRIPT, queue_call
from shared.queue.survey import (
    CLASSES,
    MAX_GATES,
    Gate,
    LaneSurvey,
    QueueSurvey,
    RecentRequest,
    TenantSurvey,
    gate_of,
)
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import Script

Cursor = tuple[int, int]


class QueueAdministration(Protocol):
    """Operations on the queues that only operators use. Each does bounded work, and may raise Unavailable."""

    async def set_gate(self, model: str, gate: Gate, tenant: str | None = None) -> None:
        """Open, pause or drain a model's queue, or a tenant in it. It stays so until it is changed again.

        Raises Conflict if MAX_GATES are not open already.
        """

    async def closed(self, models: Sequence[str]) -> Mapping[str, Gate]:
        """Return the gates of those models that are paused or draining."""

    async def survey(self, model: str, most_tenants: int) -> QueueSurvey:
        """Return the state of a queue, with at most so many tenants."""

    async def knows(self, model: str, tenant: str) -> bool:
        """Return True if a tenant is paused or draining, waits, or was served lately."""

    async def holding(self, model: str, most: int) -> list[str]:
        """Return the ids of some requests that workers hold."""

    async def recent(
        self, model: str, most: int, *, before: Cursor | None = None, inclusive: bool = False
    ) -> list[RecentRequest]:
        """Return the requests that were published last, newest first, those since a cursor left out.

        A queue remembers the last 10,000, whether their answers are kept or not. `inclusive`: the one of the cursor
        itself is returned too.
        """


def too_many_gates(model: str) -> Conflict:
    return Conflict(f"at most {MAX_GATES} gates of {model} can be paused or draining; open another one first")


class RedisQueueAdministration:
    """QueueAdministration on Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._script = Script(server, "queue", *SCRIPT)

    async def set_gate(self, model: str, gate: Gate, tenant: str | None = None) -> None:
        if not await self._run("gate", model, tenant or "", gate, MAX_GATES, keys.wake_channel(model)):
            raise too_many_gates(model)

    async def closed(self, models: Sequence[str]) -> Mapping[str, Gate]:
        async with self._server.reaching("the queue"):
            replies = await self._script.many("state", [queue_call(model) for model in models])
        gates = {model: gate_of(reply) for model, reply in zip(models, replies, strict=True)}
        return {model: gate for model, gate in gates.items() if gate != "open"}

    async def survey(self, model: str, most_tenants: int) -> QueueSurvey:
        gate, now_ms, waiting, tokens, *by_class, rows, more = await self._run("survey", model, most_tenants)
        held, waits = by_class[: len(CLASSES)], by_class[len(CLASSES) :]
        return QueueSurvey(
            gate_of(gate),
            now_ms / 1000,
            waiting,
            int(tokens),
            dict(zip(CLASSES, held, strict=True)),
            dict(zip(CLASSES, waits, strict=True)),
            [_tenant(row) for row in rows],
            bool(more),
        )

    async def knows(self, model: str, tenant: str) -> bool:
        return bool(await self._run("knows", model, tenant))

    async def holding(self, model: str, most: int) -> list[str]:
        return [job_id.decode() for job_id in await self._run("holding", model, most)]

    async def recent(
        self, model: str, most: int, *, before: Cursor | None = None, inclusive: bool = False
    ) -> list[RecentRequest]:
        end = "+" if before is None else f"{'' if inclusive else '('}{before[0]}-{before[1]}"
        parts = iter(await self._run("recent", model, end, most))
        return [RecentRequest(_cursor(entry), job_id.decode()) for entry, job_id in zip(parts, parts, strict=True)]

    async def _run(self, command: str, model: str, *args: Any) -> Any:
        async with self._server.reaching("the queue"):
            [reply] = await self._script.many(command, [queue_call(model, *args)])
        return reply


def _tenant(row: Sequence[Any]) -> TenantSurvey:
    name, gate, tokens, *numbers = row
    lanes = [
        LaneSurvey(waiting, int(served), born / 1000 if born else None)
        for waiting, served, born in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    ]
    return TenantSurvey(name.decode(errors="replace"), gate_of(gate), int(tokens), lanes)


def _cursor(entry: bytes) -> Cursor:
    milliseconds, _, number = entry.decode().partition("-")
    return int(milliseconds), int(number)


class MemoryQueueAdministration:
    """QueueAdministration of a MemoryTransport."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    async def set_gate(self, model: str, gate: Gate, tenant: str | None = None) -> None:
        queue, name = self._transport.queue(model), tenant or ""
        before = queue.gates.get(name, "open")
        if gate == "open":
            queue.gates.pop(name, None)
        elif name in queue.gates or len(queue.gates) < MAX_GATES:
            queue.gates[name] = gate
        else:
            raise too_many_gates(model)
        queue.history.note_gate(name, self._transport.now(), paused=gate == "paused")
        if before == "paused" and gate != "paused":
            queue.catch_up(name)
            self._transport.announce(model)

    async def closed(self, models: Sequence[str]) -> Mapping[str, Gate]:
        gates = {model: self._transport.queue(model).gates.get("", "open") for model in models}
        return {model: gate for model, gate in gates.items() if gate != "open"}

    async def survey(self, model: str, most_tenants: int) -> QueueSurvey:
        queue = self._transport.queue(model)
        items, served = queue.waiting(), queue.served_lately(self._transport.now())
        lanes = chain.from_iterable(found.lanes for found in queue.classes.values())
        names = [name for name in dict.fromkeys((*queue.gates, *lanes, *(each[1] for each in served))) if name]
        tenants = []
        for name in names[:most_tenants]:
            of = [queue.survey_lane(priority, name, served) for priority in PriorityClass]
            tokens = sum(item.cost for item in queue.waiting(name))
            tenants.append(TenantSurvey(name, queue.gates.get(name, "open"), tokens, of))
        held = {p: sum(each.priority is p for each in queue.held.values()) for p in PriorityClass}
        return QueueSurvey(
            queue.gates.get("", "open"),
            self._transport.now(),
            len(items),
            sum(item.cost for item in items),
            held,
            {priority: found.waiting for priority, found in queue.classes.items()},
            tenants,
            len(names) > most_tenants,
        )

    async def knows(self, model: str, tenant: str) -> bool:
        queue = self._transport.queue(model)
        served = any(name == tenant for _, name in queue.served_lately(self._transport.now()))
        return tenant in queue.gates or bool(queue.waiting(tenant)) or served

    async def holding(self, model: str, most: int) -> list[str]:
        return [held.request.id for held in self._transport.queue(model).held.values()][:most]

    async def recent(
        self, model: str, most: int, *, before: Cursor | None = None, inclusive: bool = False
    ) -> list[RecentRequest]:
        found = reversed(self._transport.queue(model).recent)
        older = (e for e in found if before is None or e.cursor < before or (inclusive and e.cursor == before))
        return [each for each, _ in zip(older, range(most), strict=False)]
