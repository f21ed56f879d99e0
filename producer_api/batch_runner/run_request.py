"""Requests of one line or task: admitted as over HTTP, awaited, and retried."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from producer_api.admission.idempotency import Identity, derived_id, derived_seed
from producer_api.admission.parsed_body import ParsedBody
from producer_api.admission.traffic import as_recorded, direct
from producer_api.auth.principal import Principal
from producer_api.batch_runner.services import BatchServices
from shared.errors import HeadraceError, InvalidRequest, NotFound, QueueFull, TenantQueueFull, Unavailable
from shared.protocol import Request
from shared.token_log.answer import Answer, collect, read_all
from shared.token_log.interface import RequestRecord
from shared.token_log.merge import follow_all

T = TypeVar("T")

RETRY_DELAY_S = 1.0  # after a full queue, an outage of Redis or an expired answer


def job_ids(body: ParsedBody, first: str) -> list[str]:
    """Return the ids of all requests of a body; `first` is the id of its first one."""
    return [first, *(derived_id(first, number) for number in range(1, len(body.drafts)))]


async def run(services: BatchServices, body: ParsedBody, *, job_id: str, seed: int, principal: Principal) -> Any:
    """Run the requests of a body under ids derived from `job_id`, or join them, and return the response object.

    Waits while the queue is full or Redis is unreachable. Raises the HeadraceError that a request was refused or
    failed with.
    """
    ids = job_ids(body, job_id)
    try:
        services.gateway.check_together(body.drafts)
    except InvalidRequest as error:
        raise body.named(error) from None
    while True:
        drafts = await reached(lambda: direct(services.catalog, body.drafts, job_id=job_id, principal=principal))
        runs = [_run(services, *each, principal) for each in zip(drafts, ids, _seeds(body, seed), strict=True)]
        try:
            requests = await asyncio.gather(*runs)
        except HeadraceError:
            for each in ids:
                services.request_control.abandon(each)
            raise
        try:
            answer = await _read(services, requests)
        except (NotFound, Unavailable):  # an answer expired unread, or its request was lost before it began
            await asyncio.sleep(RETRY_DELAY_S)
            continue
        return await _word(services, body, requests, answer)


async def read_ended(
    services: BatchServices, body: ParsedBody, records: Sequence[RequestRecord], *, seed: int
) -> Any | None:
    """Return the response object of a body whose requests have all ended, as `run` would; `records` are theirs.

    Returns None if an answer has expired. Raises the HeadraceError that a request failed with.
    """
    requests = [
        as_recorded(Identity(record.id, record.created_at, each).complete(draft, None), record)
        for draft, record, each in zip(body.drafts, records, _seeds(body, seed), strict=True)
    ]
    try:
        answer = await reached(lambda: _read(services, requests))
    except NotFound:
        return None
    return await _word(services, body, requests, answer)


async def reached(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of a call, which is repeated while Redis is unreachable."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(RETRY_DELAY_S)


def _seeds(body: ParsedBody, seed: int) -> list[int]:
    """Return the seed of each request of a body; `seed` is that of its first one."""
    same = body.seed is not None
    return [seed if same or not number else derived_seed(seed, number) for number in range(len(body.drafts))]


async def _word(services: BatchServices, body: ParsedBody, requests: Sequence[Request], answer: Answer) -> Any:
    fingerprint = await reached(lambda: services.gateway.fingerprint(requests[0]))
    return body.word(requests, answer, fingerprint)


async def _run(services: BatchServices, draft: Request, job_id: str, seed: int, principal: Principal) -> Request:
    """Submit or join one request and wait for its end."""
    completions = services.completions
    while True:
        try:
            with completions.waiting_for(job_id) as completion:
                admission = await services.gateway.submit_derived(
                    draft, job_id=job_id, seed=seed, notify=completions.channel, principal=principal
                )
                completion.admitted = True
                if admission.joined:
                    await completions.check([job_id])
                await completion.ended
            return admission.request
        except (QueueFull, TenantQueueFull, Unavailable):
            await asyncio.sleep(RETRY_DELAY_S)


async def _read(services: BatchServices, requests: Sequence[Request]) -> Answer:
    """Return the answers of ended requests as one answer. Raises NotFound, Unavailable."""
    token_log = services.backend.token_log
    if len(requests) == 1:
        return await read_all(token_log, requests[0].id)
    return await collect(follow_all(token_log, requests, [-1] * len(requests), idle=services.settings.keepalive))
