"""The token log on Redis: a state hash and a stream per request, written by Lua, readable from any seq.

The stream is the source of truth; live messages save readers from polling it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from redis.utils import str_if_bytes

from shared.errors import HeadraceError, NotFound
from shared.protocol import (
    ErrorInfo,
    Recording,
    Request,
    RequestState,
    Stay,
    TokenEvent,
    decode_recording,
    encode,
    encode_events,
)
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.node import WireKeys, pack_parts
from shared.redis.script import LEASE_EPOCH, Script, ScriptCall
from shared.token_log.interface import (
    LOST,
    OVERDUE,
    Adoption,
    Append,
    Keepsake,
    Lease,
    Live,
    LogPage,
    RequestMarks,
    RequestRecord,
    Unfinished,
)
from shared.token_log.marks import parse_marks
from shared.token_log.reader import follow
from shared.token_log.redis_form import (
    as_text,
    decode_entry,
    is_whole,
    pack_ids,
    request_fields,
    to_fields,
    to_record,
    to_unfinished,
    unpack_ids,
)
from shared.token_log.server_clock import ServerClock

SCAN_COUNT = 500  # keys that one step of the scan for unfinished requests visits
MAX_JOINED = 64  # requests of one call; the server runs it to its end, 0.7 ms, before it serves others
MAX_CACHED_KEYS = 4096  # requests whose packed keys are kept; otherwise each token names and packs them again
DAMAGED = 2  # the script's reply to an append if another program deleted or extended the log
PAGE_SEQS = 256  # that one read covers; bounds a reader's memory, although an entry may hold hundreds of tokens

Entry = tuple[bytes, Sequence[bytes]]
T = TypeVar("T")

_encode_args = msgspec.msgpack.Encoder().encode


class RedisTokenLog:
    """TokenLog on Redis.

    Args:
        server: holds the token logs.
        live: live messages of this process.
        most_tokens: maximum tokens of one log; an append beyond it is refused.
        max_attempts: workers that a request may lose.
        request_ttl, result_ttl: seconds that an unfinished and a finished request are kept.
    """

    def __init__(
        self,
        server: RedisServer,
        live: Live,
        *,
        most_tokens: int,
        max_attempts: int,
        request_ttl: float,
        result_ttl: float,
    ) -> None:
        self._server = server
        self._redis = server.client
        self._foreign = server.foreign
        self._live = live
        self._script = Script(server, "answers", LEASE_EPOCH, Path(__file__).with_suffix(".lua"))
        self._clock = ServerClock(self._time)
        self._most_tokens = most_tokens
        self._max_attempts = max_attempts
        self._request_ttl = int(request_ttl * 1000)
        self._result_ttl = int(result_ttl * 1000)

    async def now(self) -> float:
        return await self._clock.now()

    async def _time(self) -> float:
        async with self._server.reaching("the token log"):
            seconds, micros = await self._redis.time()
        return seconds + micros / 1e6

    async def create(
        self, request: Request, *, notify: str = "", watcher: str = "", keepsake: Keepsake | None = None
    ) -> bool:
        kept, keep = (keepsake.content, int(keepsake.ttl * 1000)) if keepsake else (b"", "")
        fields = {"notify": notify, "watcher": watcher, "keep": keep}
        parts = [part for name, value in fields.items() if value for part in (name, value)]
        made: int = await self._run("create", request.id, self._request_ttl, kept, *request_fields(request), *parts)
        return made == 1

    async def adopt(self, adoptions: Sequence[Adoption], notify: str) -> list[RequestRecord | None]:
        calls = []
        for each in adoptions:
            args = (self._request_ttl, int(each.create), each.source, notify, *request_fields(each.request))
            calls.append((keys.answer(each.request.id), args))
        async with self._server.reaching("the token log"):
            replies = await self._script.many("adopt", calls)
        return [
            None if reply is None else self._record(each.request.id, reply)
            for each, reply in zip(adoptions, replies, strict=True)
        ]

    async def forget(self, job_id: str) -> None:
        async with self._server.reaching("the token log"):
            await self._redis.delete(
                *keys.answer(job_id), keys.keepsake(job_id), keys.prompt(job_id), keys.recording(job_id)
            )

    async def acquire(
        self,
        job_ids: Sequence[str],
        owner: str,
        attempts: Sequence[int] = (),
        *,
        alone: bool = False,
        stays: Sequence[Stay | None] = (),
    ) -> list[Lease | None]:
        overdue = encode(ErrorInfo.from_error(OVERDUE))
        calls = []
        tries = zip(job_ids, attempts or [1] * len(job_ids), stays or [None] * len(job_ids), strict=True)
        for each, attempt, stay in tries:
            ended = (overdue, keys.live_channel(each), self._result_ttl)
            run = (attempt, self._max_attempts, int(alone), encode(stay) if stay else "")
            calls.append((keys.answer(each), (owner, self._request_ttl, *ended, *run)))
        async with self._server.reaching("the token log"):
            replies = await self._script.many("acquire", calls)
        return [await self._lease(each, owner, reply) for each, reply in zip(job_ids, replies, strict=True)]

    async def _lease(self, job_id: str, owner: str, reply: Any) -> Lease | None:
        """Decode a lease; None for a nil reply. A request with a gap in its log is ended."""
        if reply is None:
            return None
        epoch, now, entries, losses, started, next_seq, alone, ids = reply
        history = tuple(self._events(job_id, entries))
        begun = self._foreign.read("answers", keys.state(job_id), lambda: float(started))
        if begun is None or not is_whole(history, next_seq):
            await self.close(job_id, LOST)
            return None
        prompt = self._foreign.read("answers", keys.prompt(job_id), lambda: unpack_ids(ids or b"")) or ()
        return Lease(job_id, owner, epoch, float(now), history, losses, begun, alone, prompt)

    async def note_stay(self, job_id: str, stay: Stay) -> None:
        await self._run("note_stay", job_id, encode(stay))

    async def note_alone(self, lease: Lease, alone: bool) -> bool:
        reply = await self._run("note_alone", lease.job_id, lease.epoch, lease.owner, int(alone))
        return bool(reply == 1)

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        alike = len({append.lease.owner for append in appends}) == 1  # a worker has its own leases only
        replies = await self._joined("append", appends, self._append_call, together=alike)
        if DAMAGED in replies:
            for append, reply in zip(appends, replies, strict=True):
                if reply == DAMAGED:
                    await self.close(append.lease.job_id, LOST)
        return [reply == 1 for reply in replies]

    def _append_call(self, appends: Sequence[Append]) -> ScriptCall:
        """Return one call for several requests of one owner.

        Their arguments are MessagePack: as parts of a command, each would be allocated several times. Those of all
        requests are one array, argument by argument, which costs less than an array for each request.
        """
        events = [append.event for append in appends]
        leases = [append.lease for append in appends]
        args = encode_events(events)
        args += [str(event.seq) for event in events]
        args += [str(event.seq + len(event.tokens) + (event.terminal is not None)) for event in events]
        args += [str(lease.epoch) for lease in leases]
        rare = {
            number: _rare_args(append)
            for number, append in enumerate(appends, 1)
            if not append.plain and (append.event.seq == 0 or append.mark is not None or append.ends)
        }
        limits = (self._most_tokens, self._request_ttl, self._result_ttl)
        packed = b"".join([_packed_keys(lease.job_id) for lease in leases])
        names = WireKeys(keys.state(leases[0].job_id), 2 * len(leases), packed)
        return names, (*limits, leases[0].owner, _encode_args(args) + _encode_args(rare))

    async def close(
        self, job_id: str, error: HeadraceError | None = None, *, forget_queued: bool = False
    ) -> RequestRecord | None:
        reply = await self._run(
            "close",
            job_id,
            (RequestState.FAILED if error else RequestState.CANCELLED).value,
            encode(ErrorInfo.from_error(error)) if error else "",
            keys.live_channel(job_id),
            self._result_ttl,
            keys.control_channel("%s"),
            job_id,
            int(forget_queued),
        )
        return None if reply is None else self._record(job_id, reply)

    async def record(self, job_id: str) -> RequestRecord | None:
        [record] = await self.records([job_id])
        return record

    async def records(self, job_ids: Sequence[str]) -> list[RequestRecord | None]:
        async with self._server.reaching("the token log"):
            replies = await self._script.many("record", [(keys.answer(each), ()) for each in job_ids])
        return [self._record(each, reply) if reply else None for each, reply in zip(job_ids, replies, strict=True)]

    async def marks(self, job_id: str) -> RequestMarks | None:
        reply = await self._run("record", job_id)
        record = self._record(job_id, reply) if reply else None
        if record is None:
            return None
        found = self._foreign.read("answers", keys.state(job_id), lambda: parse_marks(record, to_fields(reply)))
        return found or RequestMarks(record, ())

    async def keepsake(self, job_id: str) -> bytes | None:
        async with self._server.reaching("the token log"):
            return cast(bytes | None, await self._redis.get(keys.keepsake(job_id)))

    async def recording(self, job_id: str) -> Recording | None:
        async with self._server.reaching("the token log"):
            data = cast(bytes | None, await self._redis.hget(keys.recording(job_id), "data"))
        place = keys.recording(job_id)
        return self._foreign.read("answers", place, lambda: decode_recording(data)) if data else None

    async def states(self, job_ids: Sequence[str]) -> list[RequestState | None]:
        replies = await self._joined("states", job_ids, _joined_keys)
        return [None if reply is None else RequestState(reply.decode()) for reply in replies]

    async def unfinished(self) -> AsyncIterator[list[Unfinished]]:
        async with self._server.reaching("the token log"):
            primaries = await self._redis.primaries()
        for primary in primaries:
            cursor = None
            while cursor != 0:
                async with self._server.reaching("the token log"):
                    cursor, names = await primary.scan(cursor or 0, match=keys.STATES, count=SCAN_COUNT)
                yield await self._of_unfinished([keys.request_of(str_if_bytes(name)) for name in names])

    async def _of_unfinished(self, job_ids: Sequence[str]) -> list[Unfinished]:
        replies = zip(job_ids, await self._joined("unfinished", job_ids, _joined_keys), strict=True)
        places = ((keys.state(each).encode(), (each, reply)) for each, reply in replies if reply)
        return self._foreign.read_all("answers", places, to_unfinished)

    async def read(self, job_id: str, after: int = -1) -> LogPage:
        [page] = await self.read_many({job_id: after})
        if page is None:
            raise NotFound(f"no request {job_id}, or its answer has expired")
        return page

    async def read_many(self, after: Mapping[str, int]) -> list[LogPage | None]:
        calls = [(keys.answer(job_id), (seq, PAGE_SEQS)) for job_id, seq in after.items()]
        async with self._server.reaching("the token log"):
            replies = await self._script.many("read", calls)
        return [
            reply and self._page(each, seq, *reply)
            for (each, seq), reply in zip(after.items(), replies, strict=True)
        ]

    def _page(self, job_id: str, after: int, status: bytes, entries: Sequence[Entry]) -> LogPage:
        events = tuple(event.after(after) for event in self._events(job_id, entries))
        ended = RequestState(status.decode()).terminal
        return LogPage(events, complete=ended and (not events or events[-1].terminal is not None))

    def _events(self, job_id: str, entries: Sequence[Entry]) -> list[TokenEvent]:
        """Decode entries, without foreign ones."""
        log = keys.log(job_id).encode()
        places = ((log + b":" + entry, fields) for entry, fields in entries)
        return self._foreign.read_all("answers", places, decode_entry)

    def _record(self, job_id: str, reply: Sequence[bytes]) -> RequestRecord | None:
        return self._foreign.read("answers", keys.state(job_id), lambda: to_record(job_id, to_fields(reply)))

    def follow(self, job_id: str, after: int = -1, *, idle: float) -> AsyncGenerator[TokenEvent | None]:
        return follow(self, self._live, job_id, after, idle=idle)

    async def _run(self, command: str, job_id: str, *args: Any) -> Any:
        async with self._server.reaching("the token log"):
            return await self._script(command, keys.answer(job_id), *args)

    async def _joined(
        self, command: str, items: Sequence[T], call: Callable[[Sequence[T]], ScriptCall], *, together: bool = True
    ) -> list[Any]:
        """Run a command for many requests, MAX_JOINED of them in a call if they go together. Return each reply."""
        size = MAX_JOINED if together and self._redis.joins_slots else 1
        calls = [call(items[start : start + size]) for start in range(0, len(items), size)]
        async with self._server.reaching("the token log"):
            return [reply for replies in await self._script.many(command, calls) for reply in replies]


def _joined_keys(job_ids: Sequence[str]) -> ScriptCall:
    """Return a call for several requests that needs nothing but their keys."""
    return [name for each in job_ids for name in keys.answer(each)], ()


@lru_cache(MAX_CACHED_KEYS)
def _packed_keys(job_id: str) -> bytes:
    return pack_parts(*keys.answer(job_id))


def _rare_args(append: Append) -> tuple[Any, ...]:
    """Return the arguments that most appends do not have."""
    event, mark = append.event, append.mark
    status = event.terminal.state.value if event.terminal else ""
    marked = "" if mark is None else encode(mark).decode()
    prompt = as_text(pack_ids(append.prompt))
    return str(append.prompt_tokens), marked, status, event.finish, prompt, append.recording.decode()
