"""Requests of one line or task: admitted as over HTTP, awaited, and retried."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from producer_api.admission.idempotency import derived_id, derived_seed
from producer_api.admission.parsed_body import ParsedBody
from producer_api.admission.traffic import direct
from producer_api.auth.principal import Principal
from producer_api.batch_runner.services import BatchServices
from shared.errors import HeadraceError, InvalidRequest, NotFound, QueueFull, TenantQueueFull, Unavailable
from shared.protocol import Request
from shared.token_log.answer import Answer, collect, read_all
from shared.token_log.merge import follow_all

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
    same = body.seed is not None
    seeds = [seed if same or not number else derived_seed(seed, number) for number in range(len(ids))]
    while True:
        try:
            drafts = await direct(services.catalog, body.drafts, job_id=job_id, principal=principal)
        except Unavailable:
            await asyncio.sleep(RETRY_DELAY_S)
            continue
        runs = [_run(services, *each, principal) for each in zip(drafts, ids, seeds, strict=True)]
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
        return body.word(requests, answer, await services.gateway.fingerprint(requests[0]))


async def _run(services: BatchServices, draft: Request, job_id: str, seed: int, principal: Principal) -> Request:
    """Submit or join one request and wait for its end."""
    completions = services.completions
    while True:
        try:
            with completions.waiting_for(job_id) as ended:
                admission = await services.gateway.submit_derived(
                    draft, job_id=job_id, seed=seed, notify=completions.channel, principal=principal
                )
                if admission.joined:
                    await completions.check([job_id])
                await ended
            return admission.request
        except (QueueFull, TenantQueueFull, Unavailable):
            await asyncio.sleep(RETRY_DELAY_S)


async def _read(services: BatchServices, requests: Sequence[Request]) -> Answer:
    """Return the answers of ended requests as one answer. Raises NotFound, Unavailable."""
    token_log = services.backend.token_log
    if len(requests) == 1:
        return await read_all(token_log, requests[0].id)
    return await collect(follow_all(token_log, requests, [-1] * len(requests), idle=services.settings.keepalive))
