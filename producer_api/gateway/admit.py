"""Admission: the one way in for every API. Checks a request, names it, queues it; and the way out, cancelling.

It does not know which API asked, or how an answer is worded.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog

from producer_api.gateway.catalog import Catalog
from shared.config import Settings
from shared.delivery.base import RequestRecord, TokenLog
from shared.errors import ContextLengthExceeded, InvalidRequest, NotFound, Unavailable
from shared.limits import Limits, check_request
from shared.protocol import Request, RequestState, new_request_id
from shared.redis_client import RETRY_AFTER
from shared.registry import ModelInfo
from shared.transports.base import Outlook, Transport

PATIENCE = 1.8  # seconds that one call may wait for Redis in all before its caller hears 503
REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")

log = structlog.get_logger(__name__)


class Gateway:
    """Admits requests to the queue and answers for them afterwards.

    Args:
        settings: the limits.
        transport: the queue.
        token_log: the answers.
        catalog: the models that may be named.
    """

    def __init__(self, settings: Settings, transport: Transport, token_log: TokenLog, catalog: Catalog) -> None:
        self._limits = Limits(n=settings.max_n)
        self._log_tokens = settings.log_tokens
        self._transport = transport
        self._token_log = token_log
        self._catalog = catalog
        self._upkeep: set[asyncio.Task[None]] = set()

    async def submit(self, draft: Request, *, seed: int | None) -> Request:
        """Queue `draft` under an id, a time and a seed of our own, and return it as queued.

        Args:
            draft: what the client asked for; its id, created_at and seed are not looked at.
            seed: the client's, or None.

        Raises:
            InvalidRequest, ModelNotFound, ContextLengthExceeded: the request cannot be served.
            QueueFull, Unavailable: not now; with `retry_after`.
        """
        params = msgspec.structs.replace(draft.params, seed=secrets.randbits(63) if seed is None else seed)
        draft = msgspec.structs.replace(draft, id=new_request_id(), params=params)
        check_request(draft, self._limits)
        async with patience():
            self._check_size(draft, await self._catalog.find(draft.model))
            request = msgspec.structs.replace(draft, created_at=await self._token_log.now())
            await self._queue(request)
        return request

    def _check_size(self, request: Request, model: ModelInfo) -> None:
        most = request.params.max_tokens
        if most is None:
            return
        if 0 < model.max_model_len < most:
            raise ContextLengthExceeded(
                f"max_tokens is {most}, and the context of {model.name} has {model.max_model_len} tokens",
                param="max_tokens",
            )
        if most * request.params.n > self._log_tokens:
            raise InvalidRequest(
                f"n * max_tokens is {most * request.params.n}, and an answer may have {self._log_tokens} tokens",
                param="max_tokens",
            )

    async def _queue(self, request: Request) -> None:
        """All or nothing: workers drop a queued request that has no log."""
        await self._token_log.create(request)
        try:
            ticket = await self._transport.publish(request)
            await self._token_log.note_ticket(ticket)
        except BaseException:  # also our own time limit
            self._in_background(self._token_log.forget(request.id))
            raise

    async def record(self, request_id: str, tenant: str) -> RequestRecord:
        """Raises NotFound for an unknown id and for somebody else's alike."""
        record = None
        if REQUEST_ID.fullmatch(request_id):
            async with patience():
                record = await self._token_log.record(request_id)
        if record is None or record.tenant != tenant:
            raise NotFound(f"there is no job {request_id[:64]!r}, or its answer has expired")
        return record

    async def outlook(self, record: RequestRecord) -> Outlook | None:
        """What a waiting request may expect; None once it left the queue."""
        if record.state is not RequestState.QUEUED or record.ticket is None:
            return None
        async with patience():
            return await self._transport.outlook(record.ticket)

    async def cancel(self, request_id: str) -> None:
        """End a request, wherever it is; an ended one stays as it is. Raises Unavailable."""
        async with patience():
            record = await self._token_log.close(request_id)
            if record is not None and record.state is RequestState.QUEUED and record.ticket is not None:
                await self._transport.discard(record.ticket)

    def abandon(self, request_id: str) -> None:
        """Cancel a request whose client left, without waiting for it."""
        self._in_background(self.cancel(request_id))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._tolerantly(work))
        self._upkeep.add(task)
        task.add_done_callback(self._upkeep.discard)

    async def _tolerantly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Unavailable as error:  # the request's time to live, or its worker, ends it
            log.warning("upkeep_failed", error=error.message)

    async def close(self) -> None:
        """Wait for what runs in the background; each has its own time limit."""
        await asyncio.gather(*self._upkeep)


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """Raise Unavailable when what it holds takes longer than PATIENCE."""
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError as error:
        raise Unavailable("Redis did not answer in time", retry_after=RETRY_AFTER) from error
