"""Stored responses, each with the conversation that it continued.

They are stored with the request's log: available on every replica, and kept as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from producer_api.admission.deadline import redis_deadline
from producer_api.answers.response_stream import (
    JOB_PREFIX,
    RESPONSE_PREFIX,
    finished_response,
    job_id_of,
    with_identity,
)
from producer_api.services import Context
from shared.errors import InvalidRequest, NotFound
from shared.protocol import RequestState
from shared.schemas.openai.response_input import ItemReference
from shared.schemas.openai.response_items import Item, conversation_items, job_name_of, with_ids
from shared.schemas.openai.response_object import ResponseObject
from shared.token_log.answer import read_all
from shared.token_log.interface import Keepsake, RequestRecord


class _Kept(msgspec.Struct):
    """`items` is the conversation before the answer, with the items of earlier responses."""

    asked: ResponseObject
    items: list[Item]


MAX_REFERENCED_RESPONSES = 32  # in one body; each is read from the store
_decode = msgspec.json.Decoder(_Kept).decode


@dataclass(frozen=True)
class StoredResponse:
    """A stored response; `response` is the object before its answer."""

    record: RequestRecord
    response: ResponseObject
    items: Sequence[Item]


def keepsake(context: Context, response: ResponseObject, items: Sequence[Item]) -> Keepsake:
    """Return the data to store with a request. Raises InvalidRequest if it is larger than a body may be."""
    content = msgspec.json.encode(_Kept(response, list(items)))
    limit = context.settings.max_body_bytes
    if len(content) > limit:
        raise InvalidRequest(f"store: the conversation must have at most {limit} bytes", param="store")
    return Keepsake(content, ttl=context.settings.response_ttl)


async def find(context: Context, response_id: str, tenant: str) -> StoredResponse:
    """Return a stored response. Raises NotFound, also for another tenant's or an unstored one; Unavailable."""
    missing = NotFound(f"the response {response_id[:64]!r} does not exist, or it has expired")
    if not response_id.startswith(RESPONSE_PREFIX):
        raise missing
    try:
        record = await context.request_control.record(job_id_of(response_id), tenant)
    except NotFound:
        raise missing from None
    async with redis_deadline():
        content = await context.backend.token_log.keepsake(record.id)
    if content is None:
        raise missing
    found = _decode(content)
    return StoredResponse(
        record, with_identity(found.asked, record), with_ids(found.items, record.id.removeprefix(JOB_PREFIX))
    )


async def resolve(context: Context, given: Sequence[Item | ItemReference], tenant: str) -> list[Item]:
    """Return the items with each reference replaced by the stored item that it names.

    Raises NotFound, naming the reference; InvalidRequest for references into too many responses; Unavailable.
    """
    named = [job_name_of(each.id) for each in given if isinstance(each, ItemReference)]
    if len(set(named)) > MAX_REFERENCED_RESPONSES:
        raise InvalidRequest(
            f"input must refer to items of at most {MAX_REFERENCED_RESPONSES} responses", param="input"
        )
    known: dict[str, Item] = {}
    for name in dict.fromkeys(filter(None, named)):
        known |= await _items_of(context, RESPONSE_PREFIX + name, tenant)
    items: list[Item] = []
    for i, each in enumerate(given):
        if isinstance(each, ItemReference) and each.id not in known:
            raise NotFound(f"the item {each.id[:64]!r} does not exist, or it has expired", param=f"input[{i}].id")
        items.append(known[each.id] if isinstance(each, ItemReference) else each)
    return items


async def _items_of(context: Context, response_id: str, tenant: str) -> dict[str, Item]:
    """Return the items of a stored response by id, with those of its answer once it has ended; none if unknown."""
    try:
        found = await find(context, response_id, tenant)
    except NotFound:
        return {}
    output = conversation_items((await describe(context, found)).output) if found.record.state.terminal else []
    return {item.id: item for item in (*found.items, *output)}


async def describe(context: Context, found: StoredResponse) -> ResponseObject:
    """Return the response with its present state. Raises Unavailable."""
    record = found.record
    if not record.state.terminal:
        status = "queued" if record.state is RequestState.QUEUED else "in_progress"
        return msgspec.structs.replace(found.response, status=status)
    response = finished_response(found.response, await read_all(context.backend.token_log, record.id))
    if response.status == "completed" and record.finished_at is not None:
        response.completed_at = int(record.finished_at)
    return response


async def conversation(context: Context, previous: str | None, tenant: str) -> list[Item]:
    """Return the conversation up to and including the answer of the response `previous`; empty for None.

    Raises NotFound, Unavailable; InvalidRequest if that response has not ended.
    """
    if previous is None:
        return []
    try:
        found = await find(context, previous, tenant)
    except NotFound as error:
        raise NotFound(error.message, param="previous_response_id") from None
    if not found.record.state.terminal:
        raise InvalidRequest(
            "previous_response_id must name a response that has ended", param="previous_response_id"
        )
    response = await describe(context, found)
    return [*found.items, *conversation_items(response.output)]
