"""Shadow copies: requests that are sent again to another model or version, to compare outputs and latencies.

A copy waits in class batch under a tenant of its own. It is not charged, delays nothing, and is dropped if there is
no room for it. Copies that are under way when the process ends are not compared.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import msgspec
import structlog

from producer_api.admission.idempotency import derived_id
from producer_api.admission.model_catalog import ModelCatalog
from producer_api.admission.traffic import placed, sequence_of, version_of
from shared.backend import Backend
from shared.errors import HeadraceError, NotFound, Unavailable
from shared.protocol import Infer, PriorityClass, Request, RequestState
from shared.repository.traffic.agreement import agreement_of
from shared.repository.traffic.pairs import Agreement, Pair, Side
from shared.repository.traffic.rules import Shadow
from shared.token_log.answer import Answer, read_all
from shared.token_log.interface import RequestRecord
from shared.validation.request_limits import Limits, fit_to_model
from shared.validation.ttft_target import without_target

SHADOW_TENANT = "~shadow"  # no tenant of an account, whose names have letters and digits
SHADOW_NUMBER = -1  # of the copy among the ids that are derived from a request's
MAX_OPEN = 64  # copies of one process under way
TIMEOUT_S = 600.0  # for a copy to end
POLL_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Copy:
    """A queued copy and its original."""

    name: str
    original: Request
    request: Request


class ShadowCopies:
    """Makes the shadow copies of one process, and compares them.

    Args:
        backend: the queue, the token log, and the store of the pairs.
        catalog: the models that copies may go to.
        limits: of the models' context.
    """

    def __init__(self, backend: Backend, catalog: ModelCatalog, limits: Limits) -> None:
        self._backend = backend
        self._catalog = catalog
        self._limits = limits
        self._starting: set[asyncio.Task[None]] = set()
        self._open: list[Copy] = []
        self._watcher: asyncio.Task[None] | None = None

    def start(self, original: Request, shadow: Shadow | None) -> None:
        """Copy a queued request in the background, if the rule takes it and there is room.

        A step of a sequence is not copied: without the other steps it has no meaning.
        """
        if shadow is None or not shadow.takes(original.id) or sequence_of(original) is not None:
            return
        if len(self._open) + len(self._starting) >= MAX_OPEN:
            return
        task = asyncio.create_task(self._send(original, shadow))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def started(self) -> None:
        """Wait until each copy was queued or dropped."""
        await asyncio.gather(*self._starting)

    async def close(self) -> None:
        """Stop comparing; copies that are queued run without being compared."""
        tasks = [*self._starting, *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, original: Request, shadow: Shadow) -> None:
        try:
            copy = self._copy_of(original, shadow)
            copy = fit_to_model(copy, await self._catalog.find(copy.model), self._limits)
            await self._backend.token_log.create(copy)
            try:
                await self._backend.transport.publish(copy)
            except HeadraceError:
                await self._backend.token_log.forget(copy.id)
                raise
        except HeadraceError as error:  # no room, no such model, or a prompt that does not fit it
            log.info("shadow_copy_dropped", name=shadow.name, model=shadow.model, code=error.code)
            return
        self._open.append(Copy(shadow.name, original, copy))
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())

    def _copy_of(self, original: Request, shadow: Shadow) -> Request:
        work = original.work
        if isinstance(work, Infer):
            work = msgspec.structs.replace(work, version="")
        draft = msgspec.structs.replace(
            without_target(original),
            id=derived_id(original.id, SHADOW_NUMBER),
            work=work,
            adapter=None,
            priority=PriorityClass.BATCH,
            tenant=SHADOW_TENANT,
            user="",
            deadline=original.created_at + TIMEOUT_S,
        )
        return placed(draft, shadow.model, shadow.version)

    async def _watch(self) -> None:
        """Compare the copies that end, until none is under way."""
        while self._open:
            await asyncio.sleep(POLL_S)
            with contextlib.suppress(Unavailable):
                await self._look(tuple(self._open))

    async def _look(self, copies: tuple[Copy, ...]) -> None:
        """Record the pairs whose requests have ended. Raises Unavailable."""
        ids = [job_id for copy in copies for job_id in (copy.original.id, copy.request.id)]
        records = iter(await self._backend.token_log.records(ids))
        for copy, original, shadow in zip(copies, records, records, strict=True):
            if original is None or shadow is None:  # expired or removed
                self._open.remove(copy)
            elif original.state.terminal and shadow.state.terminal:
                await self._record(copy, original, shadow)
                self._open.remove(copy)

    async def _record(self, copy: Copy, original: RequestRecord, shadow: RequestRecord) -> None:
        try:
            answers = [await read_all(self._backend.token_log, each.id) for each in (original, shadow)]
        except NotFound:  # expired or removed
            return
        agreement = None
        if original.state is shadow.state is RequestState.COMPLETED:
            agreement = agreement_of_answers(*answers)
        pair = Pair(
            at=shadow.finished_at or 0.0,
            original=_side(copy.original, original, answers[0]),
            shadow=_side(copy.request, shadow, answers[1]),
            agreement=agreement,
        )
        await self._backend.traffic.add_pair(copy.name, pair)


def agreement_of_answers(first: Answer, second: Answer) -> Agreement:
    """Return the agreement of two complete answers: of their results, or of their texts."""
    results = [answer.terminal.result if answer.terminal is not None else None for answer in (first, second)]
    if results[0] is not None and results[1] is not None:
        return agreement_of(results[0], results[1])
    texts = [[(choice.text, choice.reasoning) for _, choice in answer.choices] for answer in (first, second)]
    return Agreement(texts[0] == texts[1])


def _side(request: Request, record: RequestRecord, answer: Answer) -> Side:
    terminal = answer.terminal
    run_s = None
    if record.started_at is not None and record.finished_at is not None:
        run_s = record.finished_at - record.started_at
    result = terminal.result if terminal is not None else None
    return Side(
        model=request.model,
        version=(result.version if result is not None else "") or version_of(request),
        state=record.state,
        error=terminal.error.code if terminal is not None and terminal.error is not None else "",
        run_s=run_s,
    )
