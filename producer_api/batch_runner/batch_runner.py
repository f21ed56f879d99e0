"""Batch runner: one process's work on one batch. It claims items, runs them and renews their leases.

Several processes may work on one batch, each on different chunks. If one is killed, the others take over its items:
the request of a line has the same id in every process, so that a queued request is joined, not run again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog

from producer_api.admission.parsed_body import ParsedBody
from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.batch_runner.held_item import HeldItem
from producer_api.batch_runner.line_body import read_body
from producer_api.batch_runner.lines import Line, Outcome, locate, read, seed_of, survey
from producer_api.batch_runner.run_request import job_ids, reached, read_ended, run
from producer_api.batch_runner.services import BatchServices
from producer_api.batch_runner.work_folder import KINDS, WorkFolder
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
from shared.protocol import PriorityClass, RequestState, line_job_id
from shared.schemas.unknown_fields import HEADER
from shared.token_log.interface import RequestRecord
from shared.validation.schema_check import NOT_HELD, not_held

CHECK_INTERVAL_S = 1.0  # between checks of the batch's state and deadline, at most
DEADLINE_PRECISION_S = 2e-6  # of records, which have microseconds
MAX_ATTEMPTS = 3  # requests of one line, if Redis loses one

log = structlog.get_logger(__name__)


class BatchRunner:
    """Runs one batch.

    Args:
        room: limits the requests that this process has in progress, across all batches.
    """

    def __init__(self, services: BatchServices, record: BatchRecord, room: asyncio.Semaphore) -> None:
        self._services = services
        self._batch = record.batch
        self._folder = WorkFolder(services.settings.files / "batches", record.batch.id)
        self._room = room
        self._held: dict[str, HeldItem] = {}
        self._items_done = 0
        self._in_progress: set[str] = set()  # job ids
        self._stop: str | None = None  # error code of the unfinished lines of a cancelled or expired batch

    async def run(self) -> None:
        """Work until nothing is left to claim. If cancelled, release the claimed items. Raises HeadraceError."""
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                item = await self._services.batches.claim(self._batch.id)
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
        """Start work on an item, and return when there is room for the lines of another."""
        self._note(item.status)
        held = self._held[item.name] = HeldItem(item)
        held.work = asyncio.create_task(self._run_item(held))
        await held.fed.wait()
        async with self._room:
            pass

    def _reap(self) -> None:
        for name, held in list(self._held.items()):
            if held.work is not None and held.work.done():
                del self._held[name]
                if not held.work.cancelled():  # cancelled if another process holds the item now
                    held.work.result()
                    self._items_done += 1

    async def _leave(self, watching: asyncio.Task[None]) -> None:
        work = [held.work for held in self._held.values() if held.work is not None]
        for task in (watching, *work):
            task.cancel()
        await asyncio.gather(watching, *work, return_exceptions=True)
        log.info("batch_left", batch=self._batch.id, items_done=self._items_done, items_released=len(self._held))
        for held in self._held.values():
            try:
                await self._services.batches.release(held.item)
            except Unavailable:  # its lease expires
                log.warning("batch_item_not_released", batch=self._batch.id, item=held.item.name)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(CHECK_INTERVAL_S, self._services.settings.lease))
            try:
                await self._check()
            except Unavailable as error:
                log.warning("batch_not_renewed", batch=self._batch.id, error=error.message)

    async def _check(self) -> None:
        """Renew the leases. Once the batch is cancelled or expired, cancel its requests in progress."""
        await self._check_deadline()
        for held in list(self._held.values()):
            status = await self._services.batches.renew(held.item, *held.counts())
            if status is None and held.work is not None:
                held.work.cancel()
            self._note(status)
        if self._stop is not None:
            for each in list(self._in_progress):
                await self._services.request_control.cancel(each)

    def _note(self, status: str | None) -> None:
        if status == "cancelling":
            self._stop = "batch_cancelled"

    async def _check_deadline(self) -> None:
        if self._stop is None and await self._services.backend.token_log.now() >= self._batch.expires_at:
            self._stop = "batch_expired"

    async def _run_item(self, held: HeldItem) -> None:
        try:
            if held.item.name == VALIDATE:
                await self._validate(held.item)
            elif held.item.name == FINALIZE:
                await self._finalize(held.item)
            else:
                await self._run_chunk(held)
        finally:
            held.fed.set()
            held.cancel_lines()

    # validation

    async def _validate(self, item: Item) -> None:
        settings, batches = self._services.settings, self._services.batches
        if item.status == "cancelling":
            await batches.plan(item, 0, ())
            return
        try:
            await self._take_input()
        except NotFound as error:
            await self._fail(item, error.message)
            return
        limits = {"most_lines": settings.batch_requests, "most_bytes": settings.max_body_bytes}
        found = await asyncio.to_thread(survey, self._folder.input, self._batch, **limits)
        if not found.errors:
            await batches.plan(item, found.total, found.chunks)
        elif await batches.fail(item, found.errors):
            await self._ended()

    async def _fail(self, item: Item, message: str) -> None:
        """End the batch, because its input is gone."""
        reason = LineError("invalid_input_file", message, param="input_file_id")
        if await self._services.batches.fail(item, [reason]):
            await self._ended()

    async def _take_input(self) -> None:
        if not self._folder.input.exists():
            record = await self._services.files.find(self._batch.input_file_id, self._batch.tenant)
            await asyncio.to_thread(self._folder.keep_input, self._services.files.contents.find(record.id))

    # lines

    async def _run_chunk(self, held: HeldItem) -> None:
        path = self._folder.input
        try:
            chunk = await asyncio.to_thread(locate, path, int(held.item.name), held.item.chunk)
        except FileNotFoundError:  # another program deleted it, unless another process has finished the batch
            await self._fail(held.item, "the input of this batch is lost")
            return
        if chunk is None:
            await self._services.batches.refuse(held.item)
            return
        for number, line in read(path, chunk):
            await self._room.acquire()
            task = asyncio.create_task(self._run_line(number, line))
            task.add_done_callback(self._on_line_done)
            held.lines.append(task)
        held.fed.set()
        late = await held.write(self._folder)
        await self._services.batches.done(held.item, *held.counts(), late=late)

    def _on_line_done(self, task: asyncio.Task[Outcome]) -> None:
        self._room.release()
        if not task.cancelled() and task.exception() is None:
            outcome = "completed" if task.result().completed else "failed"
            self._services.metrics.lines.labels(outcome).inc()

    async def _run_line(self, number: int, line: Line) -> Outcome:
        """Return the outcome of a line: its result, or that the batch was stopped before it had one."""
        for attempt in range(MAX_ATTEMPTS):
            name = line_job_id(self._batch.id, number, attempt)
            try:
                body = await self._body(line)
                answer = await self._answer(name, number, body)
                return Outcome.answered(line, name, answer, _reports(body))
            except RequestLost as error:
                failure: HeadraceError = error
            except _Stopped as stopped:
                return Outcome.stopped(line, name, stopped.code)
            except HeadraceError as error:
                return Outcome.failed(line, name, error)
        return Outcome.failed(line, name, failure)

    async def _body(self, line: Line) -> ParsedBody:
        """Return the body of a line. Raises InvalidRequest, PermissionDenied."""
        strict_fields = self._services.settings.strict_fields
        body = read_body(line.url, bytes(line.body), self._batch.tenant, strict_fields=strict_fields)
        body = body.in_class(PriorityClass.BATCH)
        body = body.for_model(await reached(self._services.gateway.any_model))
        if not self._principal.may_use(body.drafts[0].model):
            raise PermissionDenied("the API key of this batch may not use this model", param="model")
        return body

    @property
    def _principal(self) -> Principal:
        batch = self._batch
        scopes, client = Scopes(models=batch.models), Client(traceparent=batch.traceparent)
        return Principal(batch.tenant, batch.key_id, batch.plan, scopes, client)

    async def _answer(self, name: str, number: int, body: ParsedBody) -> Any:
        """Return the response object of a line. Raises _Stopped, or the HeadraceError that it failed with."""
        seed = seed_of(f"{self._batch.id}:{number}") if body.seed is None else body.seed
        if not await self._stopped():
            try:
                return await self._run(name, seed, body)
            except HeadraceError as error:
                stoppable = isinstance(error, Conflict | DeadlineExceeded) or error.param == "timeout"
                if not stoppable or not await self._stopped_meanwhile():
                    raise
        return await self._ended_answer(name, seed, body)

    async def _stopped(self) -> bool:
        await reached(self._check_deadline)
        return self._stop is not None

    async def _stopped_meanwhile(self) -> bool:
        """Return as `_stopped`, also if another process learned of it first and cancelled the request."""
        self._note((await reached(partial(self._services.batches.get, self._batch.id))).status)
        return await self._stopped()

    async def _run(self, name: str, seed: int, body: ParsedBody) -> Any:
        now = await reached(self._services.backend.token_log.now)
        deadlines = [self._batch.expires_at, now + self._services.settings.max_timeout]
        if body.timeout is not None:
            deadlines.append(now + body.timeout)
        ids = job_ids(body, name)
        self._in_progress.update(ids)
        try:
            body = body.until(min(deadlines))
            return await run(self._services, body, job_id=name, seed=seed, principal=self._principal)
        finally:
            self._in_progress.difference_update(ids)

    async def _ended_answer(self, name: str, seed: int, body: ParsedBody) -> Any:
        """Return the answer of a line of a stopped batch if it is complete; otherwise cancel its requests.

        Raises _Stopped, or the HeadraceError that the request failed with before the batch was stopped.
        """
        assert self._stop is not None
        services, ids = self._services, job_ids(body, name)
        for each in ids:
            await reached(partial(services.request_control.cancel, each))
        found = await reached(lambda: services.backend.token_log.records(ids))
        records = [record for record in found if record is not None and not self._was_stopped(record)]
        if len(records) < len(ids):
            raise _Stopped(self._stop)
        answer = await read_ended(services, body, records, seed=seed)
        if answer is None:  # it expired unread
            raise _Stopped(self._stop)
        return answer

    def _was_stopped(self, record: RequestRecord) -> bool:
        """Return True if the end of the batch ended the request, by cancelling it or as its deadline."""
        due = record.deadline is not None and record.deadline + DEADLINE_PRECISION_S >= self._batch.expires_at
        return record.state is RequestState.CANCELLED or (due and record.finish == DeadlineExceeded.code)

    # the end

    async def _finalize(self, item: Item) -> None:
        lease_epochs = await self._services.batches.results(self._batch.id)
        try:
            output, errors = [await self._produce(kind, lease_epochs) for kind in KINDS]
        except FileNotFoundError:  # as for a chunk
            await self._fail(item, "the results of this batch are lost")
            return
        if await self._services.batches.finish(item, output, errors):
            outcome = "completed" if self._stop is None else self._stop.removeprefix("batch_")
            self._services.metrics.batches.labels(outcome).inc()
            await self._ended()

    async def _ended(self) -> None:
        """Wake the webhook sender and delete the folder. If either fails, a periodic task does it later."""
        try:
            await self._services.backend.webhooks.wake(self._batch.id)
        except Unavailable as error:
            log.warning("webhook_not_woken", batch=self._batch.id, error=error.message)
        await asyncio.to_thread(self._folder.remove)

    async def _produce(self, kind: str, lease_epochs: Sequence[str]) -> str | None:
        """Write the file of all results of one kind. Return its id, the same in every process; None if empty."""
        if not lease_epochs:
            return None
        file_id = f"file-{hashlib.sha256(f'{self._batch.id}:{kind}'.encode()).hexdigest()[:32]}"
        files, batch = self._services.files, self._batch
        draft = files.contents.draft(file_id)
        try:
            await asyncio.to_thread(self._folder.concatenate, lease_epochs, kind, draft)
            if not draft.size:
                return None
            names = {"tenant": batch.tenant, "filename": f"{batch.id}_{kind}.jsonl", "purpose": PRODUCED}
            await files.keep(draft, file_id, life=batch.output_life, **names)
            return file_id
        finally:
            draft.discard()


class _Stopped(Exception):
    """The batch was cancelled or expired before a line had a result. `code`: of the line's error."""

    def __init__(self, code: str) -> None:
        self.code = code


def _reports(body: ParsedBody) -> dict[str, str]:
    """Return the headers that a response to the body over HTTP would have to report on its fields."""
    reports = {HEADER: body.ignored, f"x-{NOT_HELD}": not_held(body.drafts)}
    return {header: value for header, value in reports.items() if value}
