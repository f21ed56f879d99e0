"""Token logs and locks in the memory of one process: for tests, and for use without a server.

No call awaits before it is complete, so that no other sees it half done. Nothing outlives the process.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from shared.errors import HeadraceError, NotFound
from shared.protocol import (
    ErrorInfo,
    Recording,
    Request,
    RequestState,
    Stay,
    Terminal,
    TokenEvent,
    Usage,
    decode_recording,
    encode_event,
)
from shared.redis import keys
from shared.token_log.interface import (
    OVERDUE,
    Adoption,
    Append,
    Keepsake,
    Lease,
    LogPage,
    RequestMarks,
    RequestRecord,
    Unfinished,
)
from shared.token_log.memory_answer import MemoryAnswer
from shared.token_log.reader import follow
from shared.token_log.subscription import Subscription

SWEEP_INTERVAL_S = 60.0  # between removals of expired answers


class MemoryLive:
    """Live messages to the readers of this process."""

    def __init__(self) -> None:
        self._readers: dict[str, set[Subscription]] = {}

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncIterator[Subscription]:
        reader = Subscription()
        readers = self._readers.setdefault(name, set())
        readers.add(reader)
        try:
            yield reader
        finally:
            reader.close()
            readers.discard(reader)
            if not readers and self._readers.get(name) is readers:
                del self._readers[name]

    def publish(self, name: str, message: bytes) -> None:
        for reader in self._readers.get(name, ()):
            reader.put(message)

    async def close(self) -> None: ...


class MemoryTokenLog:
    """TokenLog in memory.

    Args:
        live: publishes appends.
        most_tokens, max_attempts, request_ttl, result_ttl: as RedisTokenLog's.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        live: MemoryLive,
        *,
        most_tokens: int,
        max_attempts: int,
        request_ttl: float,
        result_ttl: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._live = live
        self._most_tokens = most_tokens
        self._max_attempts = max_attempts
        self._request_ttl = request_ttl
        self._result_ttl = result_ttl
        self._clock = clock
        self._answers: dict[str, MemoryAnswer] = {}
        self._swept = 0.0

    async def now(self) -> float:
        return self._clock()

    async def create(
        self, request: Request, *, notify: str = "", watcher: str = "", keepsake: Keepsake | None = None
    ) -> bool:
        self._sweep()
        if self._find(request.id) is not None:
            return False
        made = self._make(request)
        made.notify, made.watcher, made.keepsake = notify, watcher, keepsake
        return True

    async def adopt(self, adoptions: Sequence[Adoption], notify: str) -> list[RequestRecord | None]:
        return [self._adopt(each, notify) for each in adoptions]

    def _adopt(self, adoption: Adoption, notify: str) -> RequestRecord | None:
        answer = self._find(adoption.request.id)
        if answer is None:
            if not adoption.create:
                return None
            answer = self._make(adoption.request)
        if not adoption.source:
            answer.notify = notify
        elif answer.record.source in ("", adoption.source):
            answer.record = replace(answer.record, source=adoption.source)
            answer.carrier = notify
        return answer.record

    def _make(self, request: Request) -> MemoryAnswer:
        record = RequestRecord(
            id=request.id,
            model=request.model,
            tenant=request.tenant,
            priority=request.priority,
            state=RequestState.QUEUED,
            created_at=request.created_at,
            deadline=request.deadline,
            adapter=request.adapter,
        )
        answer = self._answers[request.id] = MemoryAnswer(record, self._clock() + self._request_ttl)
        return answer

    async def forget(self, job_id: str) -> None:
        self._answers.pop(job_id, None)

    async def acquire(
        self,
        job_ids: Sequence[str],
        owner: str,
        attempts: Sequence[int] = (),
        *,
        alone: bool = False,
        stays: Sequence[Stay | None] = (),
    ) -> list[Lease | None]:
        tries = zip(job_ids, attempts or [1] * len(job_ids), stays or [None] * len(job_ids), strict=True)
        return [self._acquire(*each, owner, alone) for each in tries]

    def _acquire(self, job_id: str, attempt: int, stay: Stay | None, owner: str, alone: bool) -> Lease | None:
        answer, now = self._find(job_id), self._clock()
        if answer is None or answer.record.state.terminal:
            return None
        answer.stay = stay or answer.stay
        if answer.record.deadline is not None and now >= answer.record.deadline:
            self._end(answer, RequestState.FAILED, ErrorInfo.from_error(OVERDUE))
            return None
        moved, answer.owner = answer.owner != owner, owner
        answer.epoch += 1
        answer.expires = now + self._request_ttl
        started = answer.record.started_at or now
        answer.record = replace(answer.record, state=RequestState.RUNNING, started_at=started)
        answer.begin_run(attempt, now)
        lost_alone = answer.count_losses(attempt, self._max_attempts, alone=alone, moved=moved)
        history, prompt = tuple(answer.events), answer.prompt
        return Lease(job_id, owner, answer.epoch, now, history, answer.losses, started, lost_alone, prompt)

    async def note_stay(self, job_id: str, stay: Stay) -> None:
        if answer := self._find(job_id):
            answer.stay = stay

    async def note_alone(self, lease: Lease, alone: bool) -> bool:
        answer = self._find(lease.job_id)
        if answer is None or (answer.epoch, answer.owner) != (lease.epoch, lease.owner):
            return False
        if answer.record.state.terminal:
            return False
        answer.alone = alone
        return True

    async def append(self, appends: Sequence[Append]) -> list[bool]:
        return [self._append(append) for append in appends]

    def _append(self, append: Append) -> bool:
        event, answer = append.event, self._find(append.lease.job_id)
        if answer is None or (answer.epoch, answer.owner) != (append.lease.epoch, append.lease.owner):
            return False
        if event.last_seq < answer.seq:
            return True
        too_long = event.seq + len(event.tokens) > self._most_tokens
        if answer.record.state.terminal or answer.seq != event.seq or too_long:
            return False
        now, before = self._clock(), answer.record.first_token_at
        answer.note_append(now, append.mark, begun=before is not None)
        first = before or (now if event.tokens else None)
        finish = event.finish or answer.record.finish
        answer.record = replace(
            answer.record, prompt_tokens=append.prompt_tokens, first_token_at=first, finish=finish
        )
        self._write(answer, event)
        if event.seq == 0:
            answer.prompt = append.prompt
        if event.terminal is not None:
            answer.recording = append.recording
            self._finish(answer, event.terminal.state)
        return True

    async def close(
        self, job_id: str, error: HeadraceError | None = None, *, forget_queued: bool = False
    ) -> RequestRecord | None:
        answer = self._find(job_id)
        if answer is None:
            return None
        before = answer.record
        if not before.state.terminal:
            info = ErrorInfo.from_error(error) if error else None
            self._end(answer, RequestState.FAILED if error else RequestState.CANCELLED, info)
            if answer.owner:
                self._live.publish(keys.control_channel(answer.owner), job_id.encode())
        if forget_queued and before.state is RequestState.QUEUED:
            await self.forget(job_id)
        return before

    async def record(self, job_id: str) -> RequestRecord | None:
        answer = self._find(job_id)
        return answer.record if answer else None

    async def records(self, job_ids: Sequence[str]) -> list[RequestRecord | None]:
        return [await self.record(job_id) for job_id in job_ids]

    async def states(self, job_ids: Sequence[str]) -> list[RequestState | None]:
        return [None if record is None else record.state for record in await self.records(job_ids)]

    async def marks(self, job_id: str) -> RequestMarks | None:
        answer = self._find(job_id)
        return answer.marks() if answer else None

    async def keepsake(self, job_id: str) -> bytes | None:
        answer = self._find(job_id)
        return answer.keepsake.content if answer is not None and answer.keepsake is not None else None

    async def recording(self, job_id: str) -> Recording | None:
        answer = self._find(job_id)
        return decode_recording(answer.recording) if answer is not None and answer.recording else None

    async def unfinished(self) -> AsyncIterator[list[Unfinished]]:
        records = [answer.record for job_id in self._answers if (answer := self._find(job_id))]
        open_ones = [record for record in records if not record.state.terminal]
        yield [Unfinished(each.id, each.state, each.model, each.created_at, each.source) for each in open_ones]

    async def read(self, job_id: str, after: int = -1) -> LogPage:
        page = self._read(job_id, after)
        if page is None:
            raise NotFound(f"no request {job_id}, or its answer has expired")
        return page

    async def read_many(self, after: Mapping[str, int]) -> list[LogPage | None]:
        return [self._read(job_id, seq) for job_id, seq in after.items()]

    def _read(self, job_id: str, after: int) -> LogPage | None:
        answer = self._find(job_id)
        if answer is None:
            return None
        events = tuple(event.after(after) for event in answer.events if event.last_seq > after)
        return LogPage(events, complete=answer.record.state.terminal)

    def follow(self, job_id: str, after: int = -1, *, idle: float) -> AsyncGenerator[TokenEvent | None]:
        return follow(self, self._live, job_id, after, idle=idle)

    def _end(self, answer: MemoryAnswer, state: RequestState, error: ErrorInfo | None) -> None:
        usage = Usage(answer.record.prompt_tokens, answer.seq)
        started, created = answer.record.started_at, answer.record.created_at
        waited = 0.0 if started is None else started - created
        self._write(answer, TokenEvent(answer.seq, (), Terminal(state, usage, error, waited)))
        answer.epoch += 1
        answer.record = replace(answer.record, finish=error.code if error else state.value)
        self._finish(answer, state)

    def _write(self, answer: MemoryAnswer, event: TokenEvent) -> None:
        answer.events.append(event)
        answer.seq = event.last_seq + 1
        completed = answer.seq - (event.terminal is not None)
        answer.record = replace(answer.record, completion_tokens=completed)
        self._live.publish(keys.live_channel(answer.record.id), encode_event(event))

    def _finish(self, answer: MemoryAnswer, state: RequestState) -> None:
        now = self._clock()
        answer.prompt = ()
        answer.record = replace(answer.record, state=state, finished_at=now)
        answer.expires = now + (answer.keepsake.ttl if answer.keepsake is not None else self._result_ttl)
        for channel in filter(None, (answer.notify, answer.watcher, answer.carrier)):
            self._live.publish(channel, answer.record.id.encode())

    def _find(self, job_id: str) -> MemoryAnswer | None:
        answer = self._answers.get(job_id)
        return answer if answer is not None and answer.expires > self._clock() else None

    def _sweep(self) -> None:
        """Remove expired answers, once in SWEEP_INTERVAL_S."""
        now = self._clock()
        if now - self._swept > SWEEP_INTERVAL_S:
            self._answers = {key: answer for key, answer in self._answers.items() if answer.expires > now}
            self._swept = now


class MemoryLocks:
    """Locks in memory."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._held: dict[str, tuple[bytes, float]] = {}

    async def acquire(self, name: str, value: bytes, ttl: float) -> bytes:
        now = self._clock()
        self._held = {key: held for key, held in self._held.items() if held[1] > now}
        found, _ = self._held.get(name, (value, 0.0))
        if found == value:
            self._held[name] = (value, now + ttl)
        return found

    async def release(self, name: str, value: bytes) -> None:
        if self._held.get(name, (b"", 0.0))[0] == value:
            del self._held[name]
