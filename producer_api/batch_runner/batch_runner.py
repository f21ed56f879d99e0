"""One tasks process's work on one batch: it claims items, does them, renews what it holds, and stops when told to.

Several processes do this for one batch at a time, by holding different chunks. Whoever is killed leaves its items
to the others: a line's request has the same id whoever runs it, and so is found, not run again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import structlog

from producer_api.auth.principal import Principal
from producer_api.batch_runner.held_item import Held
from producer_api.batch_runner.line_body import read_body
from producer_api.batch_runner.lines import Line, Outcome, job_id, read, seed_of, survey
from producer_api.batch_runner.run_request import answer, ids_of
from producer_api.batch_runner.services import Parts
from producer_api.batch_runner.work_folder import KINDS, Folder
from producer_api.schemas.files import PRODUCED
from shared.accounts.scopes import Scopes
from shared.batches.store import FINALIZE, VALIDATE, BatchRecord, Item, LineError
from shared.errors import (
    Conflict,
    DeadlineExceeded,
    HeadraceError,
    NotFound,
    PermissionDenied,
    RequestLost,
    Unavailable,
)
from shared.protocol import PriorityClass

LOOK = 1.0  # seconds between looks at the batch's state and time, at most
ATTEMPTS = 3  # requests that a line may be, where the store loses one

log = structlog.get_logger(__name__)


class BatchRun:
    """The work on `record`'s batch.

    Args:
        room: the requests that this process may have under way, over all batches.
    """

    def __init__(self, parts: Parts, record: BatchRecord, room: asyncio.Semaphore) -> None:
        self._parts = parts
        self._batch = record.batch
        self._folder = Folder(parts.settings.files / "batches", record.batch.id)
        self._room = room
        self._held: dict[str, Held] = {}
        self._done = 0  # items
        self._under_way: set[str] = set()  # ids of requests
        self._stop: str | None = None  # why no more lines are run, by the code that they end with

    async def run(self) -> None:
        """Until there is nothing left to claim; cancelled, it gives back what it holds. Raises HeadraceError."""
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                item = await self._parts.batches.claim(self._batch.id)
                if item is not None:
                    await self._begin(item)
                elif self._held:
                    work = [held.work for held in self._held.values() if held.work is not None]
                    await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                else:
                    return
                self._reap()
        finally:
            await self._leave(watching)

    async def _begin(self, item: Item) -> None:
        """Work on it in the background; returns when there is room for another's lines."""
        held = self._held[item.name] = Held(item)
        held.work = asyncio.create_task(self._work(held))
        await held.fed.wait()
        async with self._room:
            pass

    def _reap(self) -> None:
        for name, held in list(self._held.items()):
            if held.work is not None and held.work.done():
                del self._held[name]
                if not held.work.cancelled():  # as is what somebody else holds now
                    held.work.result()
                    self._done += 1

    async def _leave(self, watching: asyncio.Task[None]) -> None:
        work = [held.work for held in self._held.values() if held.work is not None]
        for task in (watching, *work):
            task.cancel()
        await asyncio.gather(watching, *work, return_exceptions=True)
        log.info("batch_left", batch=self._batch.id, items_done=self._done, items_given_back=len(self._held))
        for held in self._held.values():
            try:
                await self._parts.batches.release(held.item)
            except Unavailable:  # it lapses
                log.warning("batch_item_not_released", batch=self._batch.id, item=held.item.name)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK, self._parts.settings.lease))
            try:
                await self._look()
            except Unavailable as error:
                log.warning("batch_not_renewed", batch=self._batch.id, error=error.message)

    async def _look(self) -> None:
        """Renew what is held; once the batch is cancelled or its time is over, end what is under way."""
        await self._look_at_time()
        for held in list(self._held.values()):
            status = await self._parts.batches.renew(held.item, *held.counts())
            if status is None and held.work is not None:
                held.work.cancel()
            elif status == "cancelling":
                self._stop = "batch_cancelled"
        if self._stop is not None:
            for each in list(self._under_way):
                await self._parts.admitted.cancel(each)

    async def _look_at_time(self) -> None:
        if self._stop is None and await self._parts.backend.token_log.now() >= self._batch.expires_at:
            self._stop = "batch_expired"

    async def _work(self, held: Held) -> None:
        try:
            if held.item.name == VALIDATE:
                await self._validate(held.item)
            elif held.item.name == FINALIZE:
                await self._finalize(held.item)
            else:
                await self._chunk(held)
        finally:
            held.fed.set()
            held.drop()

    # validation

    async def _validate(self, item: Item) -> None:
        settings, batches = self._parts.settings, self._parts.batches
        if item.status == "cancelling":
            await batches.plan(item, 0, ())
            return
        try:
            await self._take_input()
        except NotFound as error:
            if await batches.fail(item, [LineError("invalid_input_file", error.message, param="input_file_id")]):
                await self._ended()
            return
        limits = {"most_lines": settings.batch_requests, "most_bytes": settings.max_body_bytes}
        found = await asyncio.to_thread(survey, self._folder.input, self._batch, **limits)
        if not found.errors:
            await batches.plan(item, found.total, found.chunks)
        elif await batches.fail(item, found.errors):
            await self._ended()

    async def _take_input(self) -> None:
        if not self._folder.input.exists():
            record = await self._parts.files.find(self._batch.input_file_id, self._batch.tenant)
            await asyncio.to_thread(self._folder.keep_input, self._parts.files.contents.find(record.id))

    # lines

    async def _chunk(self, held: Held) -> None:
        assert held.item.chunk is not None
        for number, line in read(self._folder.input, held.item.chunk):
            await self._room.acquire()
            task = asyncio.create_task(self._line(number, line))
            task.add_done_callback(lambda _: self._room.release())
            held.lines.append(task)
        held.fed.set()
        late = await held.write(self._folder)
        await self._parts.batches.done(held.item, *held.counts(), late=late)

    async def _line(self, number: int, line: Line) -> Outcome:
        for attempt in range(ATTEMPTS):
            name = job_id(self._batch.id, number, attempt)
            if self._stop is not None:
                return Outcome.stopped(line, name, self._stop)
            try:
                return Outcome.answered(line, name, await self._answer(name, number, line))
            except RequestLost as error:
                failure: HeadraceError = error
            except HeadraceError as error:
                await self._look_at_time()
                return self._failed(line, name, error)
        return Outcome.failed(line, name, failure)

    def _failed(self, line: Line, name: str, error: HeadraceError) -> Outcome:
        """A request that was cancelled, or came too late, with its batch did not fail by itself."""
        by_the_stop = isinstance(error, Conflict | DeadlineExceeded) or error.param == "timeout"
        if self._stop is not None and by_the_stop:
            return Outcome.stopped(line, name, self._stop)
        return Outcome.failed(line, name, error)

    async def _answer(self, name: str, number: int, line: Line) -> Any:
        asked = read_body(line.url, bytes(line.body), self._batch.tenant).in_class(PriorityClass.BATCH)
        principal = Principal(
            self._batch.tenant, self._batch.key_id, self._batch.plan, Scopes(models=self._batch.models)
        )
        if not principal.may_use(asked.drafts[0].model):
            raise PermissionDenied("the key of this batch may not use this model", param="model")
        now = await self._parts.backend.token_log.now()
        ends = [self._batch.expires_at, now + self._parts.settings.max_timeout]
        if asked.timeout is not None:
            ends.append(now + asked.timeout)
        seed = seed_of(f"{self._batch.id}:{number}") if asked.seed is None else asked.seed
        names = ids_of(asked, name)
        self._under_way.update(names)
        try:
            return await answer(self._parts, asked.until(min(ends)), job_id=name, seed=seed, principal=principal)
        finally:
            self._under_way.difference_update(names)

    # the end

    async def _finalize(self, item: Item) -> None:
        fences = await self._parts.batches.results(self._batch.id)
        try:
            output, errors = [await self._produce(kind, fences) for kind in KINDS]
        except FileNotFoundError:
            if await self._parts.batches.renew(item, 0, 0) is not None:
                raise
            return  # somebody else finished it
        if await self._parts.batches.finish(item, output, errors):
            await self._ended()

    async def _ended(self) -> None:
        """Whoever tells of batches' ends finds it by itself a little later, as upkeep finds the folder."""
        try:
            await self._parts.backend.webhooks.wake(self._batch.id)
        except Unavailable as error:
            log.warning("batch_end_not_told", batch=self._batch.id, error=error.message)
        await asyncio.to_thread(self._folder.remove)

    async def _produce(self, kind: str, fences: Sequence[str]) -> str | None:
        """The id of a file with all results of one kind; None where there are none. The same whoever makes it."""
        if not fences:
            return None
        file_id = f"file-{hashlib.sha256(f'{self._batch.id}:{kind}'.encode()).hexdigest()[:32]}"
        files, batch = self._parts.files, self._batch
        draft = files.contents.draft(file_id)
        try:
            await asyncio.to_thread(self._folder.concatenate, fences, kind, draft)
            if not draft.size:
                return None
            names = {"tenant": batch.tenant, "filename": f"{batch.id}_{kind}.jsonl", "purpose": PRODUCED}
            await files.keep(draft, file_id, life=batch.output_life, **names)
            return file_id
        finally:
            draft.discard()
