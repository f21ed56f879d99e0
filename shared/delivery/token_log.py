"""The durable answer on Redis: a state hash and a stream per request, written by Lua, read from any seq.

It knows nothing of queues or engines. The stream is the truth; live messages save a reader from polling it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from shared import keys
from shared.delivery.base import Append, Lease, LogPage, RequestRecord
from shared.delivery.pubsub import LiveFeed
from shared.errors import HeadraceError, NotFound, Unavailable
from shared.protocol import (
    ErrorInfo,
    PriorityClass,
    Request,
    RequestState,
    TokenEvent,
    decode_event,
    encode,
)
from shared.redis_client import RedisServer, Script
from shared.transports.base import Ticket

PAGE = 512  # entries that one read returns, and so what a reader holds in memory
OUTAGE = 60.0  # seconds that a reader waits for the store to come back before it gives up
RETRY = 0.5


class Outage:
    """How long the store has been away for one reader: borne for OUTAGE seconds, once it was reached."""

    def __init__(self) -> None:
        self._deadline: float | None = 0.0

    def bear(self, error: Unavailable) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + OUTAGE
        if now > self._deadline:
            raise error

    def over(self) -> None:
        self._deadline = None


class RedisTokenLog:
    """A TokenLog.

    Args:
        server: holds the answers.
        live: the process's live messages.
        most_tokens: bound on one log; an append beyond it is refused.
        request_ttl, result_ttl: seconds that an unfinished and a finished request are kept.
    """

    def __init__(
        self, server: RedisServer, live: LiveFeed, *, most_tokens: int, request_ttl: float, result_ttl: float
    ) -> None:
        self._server = server
        self._redis = server.client
        self._live = live
        self._script = Script(server.client, Path(__file__).with_suffix(".lua"))
        self._most_tokens = most_tokens
        self._request_ttl = int(request_ttl * 1000)
        self._result_ttl = int(result_ttl * 1000)

    async def now(self) -> float:
        async with self._server.reaching("the answer log"):
            seconds, micros = await self._redis.time()
        return seconds + micros / 1e6

    async def create(self, request: Request) -> None:
        fields = {
            "model": request.model,
            "tenant": request.tenant,
            "priority": request.priority.value,
            "created_at": f"{request.created_at:.6f}",
        }
        await self._run(
            "create", request.id, self._request_ttl, *(part for pair in fields.items() for part in pair)
        )

    async def note_ticket(self, request_id: str, ticket: Ticket) -> None:
        await self._run("note_ticket", request_id, msgspec.json.encode(ticket))

    async def forget(self, request_id: str) -> None:
        async with self._server.reaching("the answer log"):
            await self._redis.delete(keys.state(request_id), keys.log(request_id))

    async def acquire(self, request_id: str, owner: str) -> Lease | None:
        reply = await self._run("acquire", request_id, owner, self._request_ttl)
        if reply is None:
            return None
        epoch, now, entries = reply
        return Lease(request_id, owner, epoch, float(now), tuple(_events(entries)))

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        async with self._server.reaching("the answer log"):
            replies = await self._script.many("append", [self._append_call(append) for append in appends])
        return [reply == 1 for reply in replies]

    def _append_call(self, append: Append) -> tuple[Sequence[str], Sequence[Any]]:
        event, request_id = append.event, append.lease.request_id
        return _keys(request_id), (
            append.lease.epoch,
            event.seq,
            len(event.tokens),
            self._most_tokens,
            encode(event),
            keys.live_channel(request_id),
            append.prompt_tokens,
            event.terminal.state.value if event.terminal else "",
            self._request_ttl,
            self._result_ttl,
        )

    async def close(self, request_id: str, error: HeadraceError | None = None) -> RequestRecord | None:
        reply = await self._run(
            "close",
            request_id,
            (RequestState.FAILED if error else RequestState.CANCELLED).value,
            encode(ErrorInfo.of(error)) if error else "",
            keys.live_channel(request_id),
            self._result_ttl,
            keys.control_channel("%s"),
            request_id,
        )
        if reply is None:
            return None
        fields = iter(reply)
        return _record(request_id, dict(zip(fields, fields, strict=True)))

    async def record(self, request_id: str) -> RequestRecord | None:
        async with self._server.reaching("the answer log"):
            fields = cast(dict[bytes, bytes], await self._redis.hgetall(keys.state(request_id)))
        return _record(request_id, fields) if fields else None

    async def read(self, request_id: str, after: int = -1) -> LogPage:
        reply = await self._run("read", request_id, after, PAGE)
        if reply is None:
            raise NotFound(f"no request {request_id}, or its answer has expired")
        status, entries = reply
        events = tuple(event.after(after) for event in _events(entries))
        return LogPage(events, complete=RequestState(status.decode()).terminal and len(events) < PAGE)

    async def follow(self, request_id: str, after: int = -1, *, idle: float) -> AsyncGenerator[TokenEvent | None]:
        """Subscribes first, replays the log second, then drops what it already has.

        Once it has read the log, it waits out an outage of the store of up to OUTAGE seconds, as silence.
        """
        async with self._live.subscribe(keys.live_channel(request_id)) as subscription:
            seen, behind = after, True
            outage = Outage()
            while True:
                if behind:
                    try:
                        page = await self.read(request_id, seen)
                    except Unavailable as error:
                        outage.bear(error)
                        yield None
                        await asyncio.sleep(RETRY)
                        continue
                    outage.over()
                    for event in page.events:
                        seen = event.last_seq
                        yield event
                    if page.complete:
                        return
                    behind = bool(page.events)
                    continue
                message = await subscription.get(idle)
                if message is None:
                    yield None
                live = decode_event(message) if isinstance(message, bytes) else None
                if live is None or live.seq > seen + 1:
                    behind = True
                elif live.last_seq > seen:
                    yield live.after(seen)
                    seen = live.last_seq
                    if live.terminal:
                        return

    async def _run(self, command: str, request_id: str, *args: Any) -> Any:
        async with self._server.reaching("the answer log"):
            return await self._script(command, _keys(request_id), *args)


def _keys(request_id: str) -> list[str]:
    return [keys.state(request_id), keys.log(request_id)]


def _events(entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[TokenEvent]:
    return [decode_event(fields[1]) for _, fields in entries]


def _record(request_id: str, fields: Mapping[bytes, bytes]) -> RequestRecord:
    state = RequestState(fields[b"state"].decode())
    ticket = fields.get(b"ticket")

    def time(name: bytes) -> float | None:
        return float(fields[name]) if name in fields else None

    return RequestRecord(
        id=request_id,
        model=fields[b"model"].decode(),
        tenant=fields[b"tenant"].decode(),
        priority=PriorityClass(fields[b"priority"].decode()),
        state=state,
        created_at=float(fields[b"created_at"]),
        started_at=time(b"started_at"),
        first_token_at=time(b"first_token_at"),
        finished_at=time(b"finished_at"),
        prompt_tokens=int(fields.get(b"prompt_tokens", 0)),
        completion_tokens=int(fields[b"seq"]) - state.terminal,
        ticket=msgspec.json.decode(ticket, type=Ticket) if ticket else None,
    )
