"""Usage settler: charges what ended requests used, writes their usage records and logs their completion.

It runs as a task in every API process. Each process is notified at once of the ends of the requests that it
admitted. Every process also claims due requests from the ledger: those whose notification was lost or whose process
died.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import structlog

from producer_api.observability.metrics import Metrics
from producer_api.observability.request_log import AwaitedJobs
from shared.accounts.usage import UsageRecords
from shared.backend import Backend
from shared.errors import Unavailable
from shared.ledger.store import Ledger
from shared.ledger.types import Due, End, Entry
from shared.protocol import RequestState
from shared.runtime.retry import run_forever
from shared.settings import Settings
from shared.token_log.interface import RequestRecord
from shared.token_log.listener import listen

SWEEP_INTERVAL_S = 1.0  # between sweeps of the ledger
MAX_BATCH = 256  # requests in one round trip
GATHER_DELAY_S = 0.02  # to collect ends before they are settled together
MAX_PENDING = 10_000  # ends that wait here to be settled, or to be written; the ledger keeps the rest
FLUSH_DELAY_S = 0.5  # to collect ends before they are written
MAX_WRITE_BATCH = 1_000  # ends in one transaction
UNQUEUED_AGE_S = 30.0  # a request this old that is in no queue was never queued
PRUNE_INTERVAL_S = 3600.0  # between deletions of old records
LOCK = "usage"

log = structlog.get_logger(__name__)


class UsageSettler:
    """Usage settler of one process.

    Args:
        channel: the ends of the requests that this process admitted are published on it.
        awaited_jobs: jobs whose completion needs no line of its own.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        ledger: Ledger,
        records: UsageRecords,
        metrics: Metrics,
        *,
        channel: str,
        awaited_jobs: AwaitedJobs,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._ledger = ledger
        self._records = records
        self._metrics = metrics
        self._channel = channel
        self._awaited_jobs = awaited_jobs
        self._holder = secrets.token_hex(8).encode()
        self._notified: asyncio.Queue[str] = asyncio.Queue(MAX_PENDING)
        self._unwritten: dict[str, tuple[Entry, End]] = {}

    async def run(self) -> None:
        """Run until cancelled. Other processes settle what is left then."""
        listening = partial(listen, self._backend.live, self._channel, self._note_end)
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (listening, self._settle_notified, self.sweep, self._write, self.prune):
                    tasks.create_task(run_forever(work, pause_s=SWEEP_INTERVAL_S, failure_event="settling_failed"))
        finally:
            await self.flush()

    def _note_end(self, message: bytes) -> None:
        if not self._notified.full():
            self._notified.put_nowait(message.decode(errors="replace"))

    async def _settle_notified(self) -> None:
        while True:
            ended = [await self._notified.get()]
            await asyncio.sleep(GATHER_DELAY_S)
            while len(ended) < MAX_BATCH and not self._notified.empty():
                ended.append(self._notified.get_nowait())
            await self.settle(list(dict.fromkeys(ended)))

    async def sweep(self) -> None:
        """Settle all requests that are due. Raises Unavailable."""
        while due := await self._ledger.claim(MAX_BATCH):
            self._keep((each.job_id, each.entry, each.end) for each in due if each.end is not None)
            await self._look_at([each for each in due if each.end is None])

    async def settle(self, job_ids: Sequence[str]) -> None:
        """Settle those that have ended. Raises Unavailable."""
        await self._end(await self._ended(job_ids))

    async def _ended(self, job_ids: Sequence[str]) -> dict[str, RequestRecord]:
        records = await self._backend.token_log.records(job_ids)
        return {record.id: record for record in records if record is not None and record.state.terminal}

    async def _look_at(self, due: Sequence[Due]) -> None:
        """Settle open requests that have ended or will never run. Nearly all of them wait, and go on to."""
        states = await self._backend.token_log.states([each.job_id for each in due])
        found = list(zip(due, states, strict=True))
        ended = await self._ended([each.job_id for each, state in found if state and state.terminal])
        old = [(each, state) for each, state in found if each.age > UNQUEUED_AGE_S and each.job_id not in ended]
        gone = [each for each, state in old if state is None or state.terminal]
        for each in gone:
            if each.age > self._settings.result_ttl:
                log.error("usage_unknown", job_id=each.job_id)  # its end expired before anyone read it
        stuck = await self._unqueued(each for each, state in old if state is RequestState.QUEUED)
        await self._end({**ended, **dict.fromkeys(each.job_id for each in gone), **dict.fromkeys(stuck)})

    async def _unqueued(self, due: Iterable[Due]) -> list[str]:
        """Return the requests that are in no queue: their process died after it created the log."""
        by_model = defaultdict(list)
        for each in due:
            by_model[each.entry.model].append(each.job_id)
        return [
            name
            for model, names in by_model.items()
            for name in await self._backend.transport.missing(model, names)
        ]

    async def _end(self, records: Mapping[str, RequestRecord | None]) -> None:
        """Settle requests by their records; one without a record never started."""
        ends = {name: None if record is None else End.from_record(record) for name, record in records.items()}
        kept = self._settings.usage
        used = [(name, None if end is None else end.tokens, end if kept else None) for name, end in ends.items()]
        entries = await self._ledger.settle(used)
        settled = [
            (name, entry, ends[name]) for name, entry in zip(ends, entries, strict=True) if entry is not None
        ]
        for name, entry, end in settled:
            logged = entry.channel == self._channel and self._awaited_jobs.settled(name)
            if end is not None and not logged:
                _log_completion(name, entry, end)
        if kept:
            self._keep((name, entry, end) for name, entry, end in settled if end is not None)

    def _keep(self, ends: Iterable[tuple[str, Entry, End]]) -> None:
        for name, entry, end in ends:
            if len(self._unwritten) < MAX_PENDING:
                self._unwritten[name] = (entry, end)

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_DELAY_S)
            await self.flush()

    async def flush(self) -> None:
        """Write the collected usage records. Those that cannot be written now are due again after their lease."""
        while self._unwritten:
            names = list(self._unwritten)[:MAX_WRITE_BATCH]
            ends = [(name, *self._unwritten.pop(name)) for name in names]
            try:
                await self._records.write(ends)
                await self._ledger.written(names)
            except Unavailable as error:
                log.warning("usage_not_written", records=len(ends), error=error.message)
                return
            self._metrics.usage_written.inc(len(ends))

    async def prune(self) -> None:
        """Delete old usage records, in one process at a time."""
        if await self._backend.locks.acquire(LOCK, self._holder, PRUNE_INTERVAL_S) == self._holder:
            before = await self._backend.token_log.now() - self._settings.usage_ttl
            if removed := await self._records.prune(before):
                log.info("usage_pruned", records=removed)
        await asyncio.sleep(PRUNE_INTERVAL_S)


def _log_completion(name: str, entry: Entry, end: End) -> None:
    """Log the completion of a job that no HTTP request waited for."""
    facts = {
        "http_request_id": entry.http_request_id,
        "trace_id": entry.trace_id,
        "job_id": name,
        "tenant": entry.tenant,
        "key": entry.key_id,
        "model": entry.model,
        "state": end.state,
        "finish": end.finish,
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "queue_seconds": _seconds_between(end.created_at, end.started_at),
        "first_token_seconds": _seconds_between(end.created_at, end.first_token_at),
        "seconds": _seconds_between(end.created_at, end.finished_at),
    }
    log.info("request_ended", **{key: value for key, value in facts.items() if value not in ("", None)})


def _seconds_between(begin: float, then: float | None) -> float | None:
    return None if then is None else round(then - begin, 4)
