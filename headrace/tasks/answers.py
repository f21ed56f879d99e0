"""One request of a batch or a task, from its body to its answer: admitted as by HTTP, awaited, tried again.

It does not know who wants the answer.
"""

from __future__ import annotations

import asyncio

import msgspec

from headrace.tasks.parts import Parts
from producer_api.completion import completion
from producer_api.gateway.principal import Principal
from shared.delivery.answer import read_all
from shared.errors import InvalidRequest, NotFound, QueueFull, TenantQueueFull, Unavailable
from shared.protocol import PriorityClass, Request
from shared.schemas.chat import ChatCompletion, ChatRequest
from shared.schemas.validation import validate

PAUSE = 1.0  # seconds before what could not be had is asked for again


def draft_of(body: bytes, tenant: str, *, priority: PriorityClass | None = None) -> tuple[ChatRequest, Request]:
    """A body as POST /v1/chat/completions takes it, and the draft that it makes, in the class `priority`.

    Raises InvalidRequest, MalformedBody.
    """
    parsed = validate(body, ChatRequest)
    if parsed.stream:
        raise InvalidRequest("stream: the answer is not streamed here", param="stream")
    draft = parsed.to_request(tenant, stream=False)
    if priority is not None:
        draft = msgspec.structs.replace(draft, priority=priority)
    return parsed, draft


async def answer(
    parts: Parts, draft: Request, *, request_id: str, seed: int, principal: Principal
) -> ChatCompletion:
    """Run `draft` under a derived id, or join it; a full queue and a store that is away are waited out.

    Raises HeadraceError: what the request was refused or failed for.
    """
    while True:
        try:
            with parts.ends.awaiting(request_id) as ended:
                admission = await parts.gateway.submit_derived(
                    draft, request_id=request_id, seed=seed, notify=parts.ends.channel, principal=principal
                )
                if admission.joined:
                    await parts.ends.look([request_id])
                await ended
        except (QueueFull, TenantQueueFull, Unavailable):
            await asyncio.sleep(PAUSE)
            continue
        try:
            found = await read_all(parts.backend.token_log, request_id)
        except (NotFound, Unavailable):  # it expired unread, or was lost before it began: run it anew
            await asyncio.sleep(PAUSE)
            continue
        return completion(admission.request, found)
