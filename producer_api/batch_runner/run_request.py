"""The requests of a line or a task, from their drafts to their answer: admitted as by HTTP, awaited, tried again.

It does not know who wants the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from producer_api.admission.idempotency import derived_id, derived_seed
from producer_api.admission.parsed_body import ParsedBody
from producer_api.auth.principal import Principal
from producer_api.batch_runner.services import Parts
from shared.errors import HeadraceError, NotFound, QueueFull, TenantQueueFull, Unavailable
from shared.protocol import Request
from shared.token_log.answer import Answer, collect, read_all
from shared.token_log.merge import follow_all

PAUSE = 1.0  # seconds before what could not be had is asked for again


def ids_of(asked: ParsedBody, job_id: str) -> list[str]:
    """Those of all its requests, of which `job_id` is the first's."""
    return [job_id, *(derived_id(job_id, number) for number in range(1, len(asked.drafts)))]


async def answer(parts: Parts, asked: ParsedBody, *, job_id: str, seed: int, principal: Principal) -> Any:
    """Run what is asked under derived ids, or join it; a full queue and a store that is away are waited out.

    Raises HeadraceError: what a request was refused or failed for.
    """
    ids = ids_of(asked, job_id)
    parts.gateway.check_together(asked.drafts)
    same = asked.seed is not None
    seeds = [seed if same or not number else derived_seed(seed, number) for number in range(len(ids))]
    while True:
        runs = [_run(parts, *each, principal) for each in zip(asked.drafts, ids, seeds, strict=True)]
        try:
            requests = await asyncio.gather(*runs)
        except HeadraceError:
            for each in ids:
                parts.admitted.abandon(each)
            raise
        try:
            found = await _read(parts, requests)
        except (NotFound, Unavailable):  # one expired unread, or was lost before it began: run it anew
            await asyncio.sleep(PAUSE)
            continue
        return asked.word(requests, found, await parts.gateway.fingerprint(requests[0].model))


async def _run(parts: Parts, draft: Request, job_id: str, seed: int, principal: Principal) -> Request:
    """Until it has ended."""
    while True:
        try:
            with parts.ends.awaiting(job_id) as ended:
                admission = await parts.gateway.submit_derived(
                    draft, job_id=job_id, seed=seed, notify=parts.ends.channel, principal=principal
                )
                if admission.joined:
                    await parts.ends.look([job_id])
                await ended
            return admission.request
        except (QueueFull, TenantQueueFull, Unavailable):
            await asyncio.sleep(PAUSE)


async def _read(parts: Parts, requests: Sequence[Request]) -> Answer:
    """What has ended, as one answer. Raises NotFound, Unavailable."""
    token_log = parts.backend.token_log
    if len(requests) == 1:
        return await read_all(token_log, requests[0].id)
    return await collect(follow_all(token_log, requests, [-1] * len(requests), idle=parts.settings.keepalive))
