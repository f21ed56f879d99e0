"""The queue on Redis: lanes of waiting requests, and one stream with a consumer group per model and class.

A worker holds an entry as long as the entry's idle time, which its heartbeat resets, is below the lease, by the
server's clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import HeadraceError
from shared.protocol import Backlog, Outlook, PriorityClass, Request, Stay, Ticket, decode_request, encode
from shared.queue import interface
from shared.queue.interface import (
    CLASS_WEIGHTS,
    FORGET_AFTER_S,
    Bounds,
    Claim,
    ClassDemand,
    Delivery,
    Demand,
    Lost,
    Pulled,
    QueueDepth,
    Room,
    Wait,
    drain_refusal,
    lane_order,
    late,
    latest_start,
    refusal,
    without_stay,
)
from shared.queue.router import Router
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.foreign import UNREADABLE
from shared.redis.script import Script
from shared.validation.token_estimate import token_estimate

CLASSES = tuple(PriorityClass)
_PARTS = (
    *("structure", "gates", "history", "entries", "reservations", "routes", "lanes", "pull", "leases", "upkeep"),
    *("demand", "administration", "run"),
)
SCRIPT = tuple(Path(__file__).with_name(f"{part}.lua") for part in _PARTS)
CONFIRM_WITHIN_S = 10.0  # or a reservation is given back
MAX_SEATS = 4096  # that one request counts for
MAX_MS = 2**53  # of a deadline; Lua counts exactly up to here
LATE = 5  # refuses a request that would start later than it must
MAX_LOST = 256  # lost requests that one call reports
_backlog_decoder = msgspec.json.Decoder(Backlog)
_stay_decoder = msgspec.json.Decoder(Stay)
JOB_ID = re.compile(r"[\w.:-]{1,256}", re.ASCII)


class RedisStreams:
    """Transport on Redis Streams.

    Args:
        server: holds the queues.
        bounds: bounds of each queue.
        lease: seconds of silence after which a held message may be claimed.
        router: chooses the workers of requests; None lets each worker take whatever it has room for.
    """

    def __init__(self, server: RedisServer, *, bounds: Bounds, lease: float, router: Router | None = None) -> None:
        self._script = Script(server, "queue", *SCRIPT)
        self._server = server
        self._bounds = bounds
        self._lease_ms = int(lease * 1000)
        self._router = router

    async def publish(self, request: Request) -> Ticket:
        [place] = await self.publish_many([request])
        if isinstance(place, HeadraceError):
            raise place
        return place

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        aims = [""] * len(requests) if self._router is None else await self._router.aims(requests, self._loads)
        return await self._place(
            "publish", requests, [_published(*each) for each in zip(requests, aims, strict=True)]
        )

    async def reserve(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        """Promise each a place, under the bounds of `publish`, which later fulfils the promise."""
        details = [(_deadline(request), *_target(request)) for request in requests]
        return await self._place("reserve", requests, details)

    async def _place(
        self, command: str, requests: Sequence[Request], details: Sequence[tuple[Any, ...]]
    ) -> list[Ticket | HeadraceError]:
        """Run a command that takes a place under the bounds."""
        bounds = self._bounds
        limits = (bounds.depth, bounds.tokens, bounds.tenant_depth, bounds.tenant_tokens)
        calls = [
            queue_call(each.model, *_place(each), token_estimate(each), *more, *limits)
            for each, more in zip(requests, details, strict=True)
        ]
        async with self._server.reaching("the queue"):
            replies = await self._script.many(command, calls)
        return [_placed(request, reply) for request, reply in zip(requests, replies, strict=True)]

    async def confirm(self, tickets: Sequence[Ticket], *, written: bool) -> None:
        """Keep the reservations of requests that were written to their topic; give back those of others."""
        calls = [queue_call(ticket.model, ticket.job_id, int(written)) for ticket in tickets]
        async with self._server.reaching("the queue"):
            await self._script.many("confirm", calls)

    async def pull(self, model: str, worker: str, room: Room) -> Pulled:
        shares = [part for priority in CLASSES for part in (CLASS_WEIGHTS[priority], room.seats[priority])]
        patience_ms = int(self._router.patience(model) * 1000) if self._router else 0
        entries, more, spared, returned = await self._run(
            "pull",
            model,
            worker,
            room.capacity,
            *shares,
            int(interface.SPARE_S * 1000),
            keys.wake_channel(model),
            self._lease_ms,
            patience_ms,
            self._is_routed(model),
            int(interface.STEP_S * interface.TICKS_PER_S),
        )
        if returned and self._router:
            self._router.count(model, "returned", returned)
        return Pulled(await self._deliveries(model, entries), bool(more), bool(spared))

    async def claim(self, model: str, worker: str, room: Room) -> Pulled:
        most, spare_ms = max(room.seats.values()), int(interface.SPARE_S * 1000)
        wake = keys.wake_channel(model)
        entries, left, spared = await self._run(
            "claim", model, worker, room.capacity, most, self._lease_ms, spare_ms, wake, self._is_routed(model)
        )
        return Pulled(await self._deliveries(model, entries), bool(left), bool(spared))

    async def _deliveries(self, model: str, reply: Iterable[Any]) -> list[Delivery]:
        """Return the entries' requests; set foreign entries aside."""
        found = []
        for index, entry, payload, attempt in reply:
            try:
                request, stay = _request(model, payload)
            except UNREADABLE as error:
                await self._run("refuse", model, index, entry, f"not a request: {type(error).__name__}")
                continue
            claim = Claim(request.id, model, CLASSES[index - 1], entry.decode())
            found.append(Delivery(request, claim, attempt, stay))
        return found

    async def renew(self, model: str, worker: str, claims: Sequence[Claim]) -> list[Claim]:
        if not claims:
            return []
        lost = iter(await self._run("renew", model, worker, self._is_routed(model), *_entries(claims)))
        gone = {(CLASSES[int(index) - 1], entry.decode()) for index, entry in zip(lost, lost, strict=True)}
        return [claim for claim in claims if (claim.priority, claim.entry) in gone]

    async def release(self, model: str, worker: str, claims: Sequence[Claim], *, lost: bool = False) -> None:
        if claims:
            wake = keys.wake_channel(model)
            await self._run("release", model, worker, self._lease_ms, wake, int(lost), *_entries(claims))

    async def leave(self, model: str, worker: str) -> None:
        await self._run("leave", model, worker, keys.wake_channel(model))

    async def acknowledge(self, claims: Sequence[Claim]) -> None:
        if claims:
            done = [part for claim in claims for part in (_class(claim.priority), claim.entry, claim.job_id)]
            await self._run("acknowledge", claims[0].model, *done)

    async def discard(self, ticket: Ticket) -> Stay | None:
        stay = await self._run("discard", ticket.model, *_place(ticket))
        return _stay(stay)

    async def depth(self, model: str) -> QueueDepth:
        return (await self.demand(model)).depth

    async def demand(self, model: str) -> Demand:
        total, classes = await self._run("demand", model)
        waiting, tokens, held, age_ms, wait, paused, paused_tokens, open_ms = total
        seconds = float(wait) if wait else None
        depth = QueueDepth(waiting, tokens, held, age_ms / 1000, seconds, paused, paused_tokens, open_ms / 1000)
        return Demand(
            depth,
            {
                priority: ClassDemand(waiting, held, age_ms / 1000, float(speed or 0))
                for priority, (waiting, held, age_ms, speed) in zip(CLASSES, classes, strict=True)
            },
        )

    async def outlook(self, ticket: Ticket) -> Outlook | None:
        reply = await self._run("outlook", ticket.model, *_place(ticket))
        return None if reply is None else Outlook(reply[0], float(reply[1]) if reply[1] else None)

    async def wait_of(self, ticket: Ticket) -> Wait | None:
        reply = await self._run("wait", ticket.model, *_place(ticket))
        if reply is None:
            return None
        now, stay = reply
        return Wait(_backlog_decoder.decode(now), _stay(stay))

    async def overdue(self, model: str, most: int) -> list[str]:
        return [job_id.decode() for job_id in await self._run("overdue", model, most)]

    async def forget(self, model: str, job_ids: Sequence[str]) -> None:
        if job_ids:
            await self._run("forget", model, *job_ids)

    async def missing(self, model: str, job_ids: Sequence[str]) -> list[str]:
        return [job_id.decode() for job_id in await self._run("missing", model, *job_ids)]

    async def lost(self, model: str) -> Lost:
        wake, found, incomplete, cursor = keys.wake_channel(model), list[str](), False, b""
        while cursor != b"0" and len(found) < MAX_LOST:
            job_ids, deleted, cursor = await self._run("lost", model, MAX_LOST, wake, cursor or b"0")
            found += [job_id.decode() for job_id in job_ids]
            incomplete = incomplete or bool(deleted)
        return Lost(found, incomplete)

    async def tidy(self, model: str) -> int:
        struck: int = await self._run("tidy", model, int(FORGET_AFTER_S * 1000))
        return struck

    async def lapsed(self, model: str) -> list[str]:
        return [job_id.decode() for job_id in await self._run("lapsed", model, int(CONFIRM_WITHIN_S * 1000))]

    async def _loads(self, model: str) -> dict[str, int]:
        """Return the tokens in flight of the workers that requests can be aimed at."""
        reply = iter(await self._run("in_flight", model, self._lease_ms))
        return {worker.decode(errors="replace"): int(tokens) for worker, tokens in zip(reply, reply, strict=True)}

    def _is_routed(self, model: str) -> int:
        return int(self._router is not None and self._router.routes(model))

    async def _run(self, command: str, model: str, *args: Any) -> Any:
        async with self._server.reaching("the queue"):
            [reply] = await self._script.many(command, [queue_call(model, *args)])
        return reply


def queue_call(model: str, *args: Any) -> tuple[Sequence[str], Sequence[Any]]:
    """Return a call of the script: its keys, and the arguments with those that all commands take."""
    return keys.transport(model), (keys.GROUP, keys.lane_prefix(model), *args)


def _published(request: Request, aim: str) -> tuple[Any, ...]:
    """Return the arguments of `publish` after the request's place and cost."""
    seats = max(1, min(request.params.n, MAX_SEATS))
    content, wake = encode(without_stay(request)), keys.wake_channel(request.model)
    return seats, _deadline(request), content, wake, aim, *_target(request)


def _target(request: Request) -> tuple[int | str, int | str]:
    """Return the order in the lane in ticks, and the latest start in ms; each empty without one."""
    order, start = lane_order(request), latest_start(request)
    return "" if order is None else order, "" if start is None else int(start * 1000)


def _placed(request: Request, reply: Any) -> Ticket | HeadraceError:
    """Decode a reply: 0, or the bound that was met (1, 2), the gate that drains (3, 4) or LATE, and seconds."""
    if reply == 0:
        return Ticket(request.id, request.model, request.priority, request.tenant)
    which, wait = reply
    if which == LATE:
        return late(request, float(wait))
    if which > 2:
        return drain_refusal(request.model, whole_model=which == 3)
    return refusal(request.model, whole_model=which == 1, wait=float(wait) if wait else None)


def _stay(content: bytes | None) -> Stay | None:
    """Decode a stay; None without one, or for content of another program."""
    try:
        return _stay_decoder.decode(content) if content else None
    except UNREADABLE:
        return None


def _class(priority: PriorityClass) -> int:
    """Return a class as the script numbers it, from 1, the most urgent."""
    return CLASSES.index(priority) + 1


def _deadline(request: Request) -> int | str:
    """Return the deadline in ms; empty without one."""
    return "" if request.deadline is None else int(min(request.deadline * 1000, MAX_MS))


def _place(what: Ticket | Request) -> tuple[int, str, str]:
    job_id = what.job_id if isinstance(what, Ticket) else what.id
    return _class(what.priority), what.tenant, job_id


def _entries(claims: Iterable[Claim]) -> list[str | int]:
    return [part for claim in claims for part in (_class(claim.priority), claim.entry)]


def _request(model: str, payload: bytes) -> tuple[Request, Stay | None]:
    """Decode a request and its stay. Raises UNREADABLE for a payload that no API queued for this model."""
    request = decode_request(payload)
    if request.model != model or not JOB_ID.fullmatch(request.id):
        raise ValueError("not an entry of this queue")
    return without_stay(request), request.stay
