"""Settles requests that ended: charges what they took, writes their usage records, tells the log.

A task in every API process. It hears at once of the ends of what its process admitted; what nobody heard of, or
was done with, any of them finds due in the ledger. It does not know how limits are counted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping

import structlog

from producer_api.observability.metrics import Metrics
from producer_api.observability.request_facts import Told
from shared.accounts.usage import UsageRecords
from shared.backend import Backend
from shared.errors import Unavailable
from shared.ledger.store import Ledger
from shared.ledger.types import End, Entry
from shared.protocol import RequestState
from shared.runtime.retry import run_forever
from shared.settings import Settings
from shared.token_log.interface import RequestRecord

ROUND = 1.0  # seconds between looks for what is due
AT_ONCE = 256  # requests in one round trip
GATHER = 0.02  # seconds for which ends gather before they are settled together
MOST_HEARD = 10_000  # ends that wait to be settled, or written, here; more are found due later
FLUSH = 0.5  # seconds for which ends gather before they are written
MOST_WRITTEN = 1_000  # ends in one transaction
UNQUEUED = 30.0  # seconds after which what is in no queue was never put there
TIDY = 3600.0  # seconds between looks for records that are too old
LOCK = "usage"

log = structlog.get_logger(__name__)


class Settler:
    """One process's part.

    Args:
        channel: on which the ends of what this process admitted are published.
        told: the ends that need no line of the log.
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
        told: Told,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._ledger = ledger
        self._records = records
        self._metrics = metrics
        self._channel = channel
        self._told = told
        self._me = secrets.token_hex(8).encode()
        self._heard: asyncio.Queue[str] = asyncio.Queue(MOST_HEARD)
        self._unwritten: dict[str, tuple[Entry, End]] = {}

    async def run(self) -> None:
        """Until it is cancelled; what is not done then is another's."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (self._listen, self._settle_heard, self.sweep, self._write, self.tidy):
                    tasks.create_task(run_forever(work, pause_s=ROUND, failure_event="settling_failed"))
        finally:
            await self.flush()

    async def _listen(self) -> None:
        async with self._backend.live.subscribe(self._channel) as ended:
            while True:
                message = await ended.get(None)
                if isinstance(message, bytes) and not self._heard.full():
                    self._heard.put_nowait(message.decode(errors="replace"))

    async def _settle_heard(self) -> None:
        while True:
            heard = [await self._heard.get()]
            await asyncio.sleep(GATHER)
            while len(heard) < AT_ONCE and not self._heard.empty():
                heard.append(self._heard.get_nowait())
            await self.settle(dict.fromkeys(heard, 0.0))

    async def sweep(self) -> None:
        """Look at all that is due. Raises Unavailable."""
        while due := await self._ledger.claim(AT_ONCE):
            self._keep((each.job_id, each.entry, each.end) for each in due if each.end is not None)
            await self.settle({each.job_id: each.age for each in due if each.end is None})

    async def settle(self, ages: Mapping[str, float]) -> None:
        """Settle those that have ended, of requests by the seconds since their charge. Raises Unavailable."""
        if not ages:
            return
        records = dict(zip(ages, await self._backend.token_log.records(list(ages)), strict=True))
        ended = {name: record for name, record in records.items() if record is not None and record.state.terminal}
        gone = {name: None for name, age in ages.items() if records[name] is None and age > UNQUEUED}
        for name in gone:
            if ages[name] > self._settings.result_ttl:
                log.error("usage_unknown", job=name)  # nobody looked while its end could be read
        stuck = dict.fromkeys(await self._unqueued(records.values(), ages))
        await self._end({**ended, **gone, **stuck})

    async def _unqueued(self, records: Iterable[RequestRecord | None], ages: Mapping[str, float]) -> list[str]:
        """Those whose log was made, and whoever made it died before queueing them."""
        old = defaultdict(list)
        for record in records:
            if record is not None and record.state is RequestState.QUEUED and ages[record.id] > UNQUEUED:
                old[record.model].append(record.id)
        return [
            name for model, names in old.items() for name in await self._backend.transport.missing(model, names)
        ]

    async def _end(self, records: Mapping[str, RequestRecord | None]) -> None:
        """Settle them; one without a record never began."""
        ends = {name: None if record is None else End.of(record) for name, record in records.items()}
        kept = self._settings.usage
        asked = [(name, None if end is None else end.tokens, end if kept else None) for name, end in ends.items()]
        entries = await self._ledger.settle(asked)
        settled = [
            (name, entry, ends[name]) for name, entry in zip(ends, entries, strict=True) if entry is not None
        ]
        for name, entry, end in settled:
            known = entry.channel == self._channel and self._told.settled(name)
            if end is not None and not known:
                _tell(name, entry, end)
        if kept:
            self._keep((name, entry, end) for name, entry, end in settled if end is not None)

    def _keep(self, ends: Iterable[tuple[str, Entry, End]]) -> None:
        for name, entry, end in ends:
            if len(self._unwritten) < MOST_HEARD:
                self._unwritten[name] = (entry, end)

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(FLUSH)
            await self.flush()

    async def flush(self) -> None:
        """What cannot be written now is due again after its lease, here or elsewhere."""
        while self._unwritten:
            names = list(self._unwritten)[:MOST_WRITTEN]
            ends = [(name, *self._unwritten.pop(name)) for name in names]
            try:
                await self._records.write(ends)
                await self._ledger.written(names)
            except Unavailable as error:
                log.warning("usage_not_written", records=len(ends), error=error.message)
                return
            self._metrics.usage_written.inc(len(ends))

    async def tidy(self) -> None:
        """One process at a time."""
        if await self._backend.holds.hold(LOCK, self._me, TIDY) == self._me:
            before = await self._backend.token_log.now() - self._settings.usage_ttl
            if removed := await self._records.prune(before):
                log.info("usage_pruned", records=removed)
        await asyncio.sleep(TIDY)


def _tell(name: str, entry: Entry, end: End) -> None:
    """The line of an end that no HTTP request awaited."""
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
        "queue_seconds": _after(end.created_at, end.started_at),
        "first_token_seconds": _after(end.created_at, end.first_token_at),
        "seconds": _after(end.created_at, end.finished_at),
    }
    log.info("request_ended", **{key: value for key, value in facts.items() if value not in ("", None)})


def _after(begin: float, then: float | None) -> float | None:
    return None if then is None else round(then - begin, 4)
