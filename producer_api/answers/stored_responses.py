"""Responses that are stored: what was asked of each, and the conversation that it went on from.

It is kept with the request's log, and so on every replica and for as long. It knows nothing of streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from producer_api.admission.deadline import patience
from producer_api.answers.response_stream import THEIRS, admitted, ended, job_id_of
from producer_api.services import Context
from shared.errors import InvalidRequest, NotFound
from shared.protocol import RequestState
from shared.schemas.openai.response_items import Item, conversation_items
from shared.schemas.openai.response_object import ResponseObject
from shared.token_log.answer import read_all
from shared.token_log.interface import Keepsake, RequestRecord


class _Kept(msgspec.Struct):
    """`items` are all that came before the answer, those of earlier responses too."""

    asked: ResponseObject
    items: list[Item]


_decode = msgspec.json.Decoder(_Kept).decode


@dataclass(frozen=True)
class StoredResponse:
    """One response of its tenant: `asked` is it before its answer."""

    record: RequestRecord
    asked: ResponseObject
    items: Sequence[Item]


def keepsake(context: Context, asked: ResponseObject, items: Sequence[Item]) -> Keepsake:
    """What makes a response a stored one. Raises InvalidRequest where that is larger than a body may be."""
    content = msgspec.json.encode(_Kept(asked, list(items)))
    if len(content) > context.settings.max_body_bytes:
        raise InvalidRequest("the conversation is too large to be stored", param="store")
    return Keepsake(content, ttl=context.settings.response_ttl)


async def find(context: Context, response_id: str, tenant: str) -> StoredResponse:
    """Raises NotFound for one that is unknown, somebody else's or not stored; Unavailable."""
    missing = NotFound(f"there is no response {response_id[:64]!r}, or it has expired")
    if not response_id.startswith(THEIRS):
        raise missing
    try:
        record = await context.admitted.record(job_id_of(response_id), tenant)
    except NotFound:
        raise missing from None
    async with patience():
        content = await context.backend.token_log.keepsake(record.id)
    if content is None:
        raise missing
    found = _decode(content)
    return StoredResponse(record, admitted(found.asked, record), found.items)


async def describe(context: Context, found: StoredResponse) -> ResponseObject:
    """As it stands. Raises Unavailable."""
    record, asked = found.record, found.asked
    if not record.state.terminal:
        status = "queued" if record.state is RequestState.QUEUED else "in_progress"
        return msgspec.structs.replace(asked, status=status)
    response = ended(asked, await read_all(context.backend.token_log, record.id))
    if response.status == "completed" and record.finished_at is not None:
        response.completed_at = int(record.finished_at)
    return response


async def conversation(context: Context, previous: str | None, tenant: str) -> list[Item]:
    """All items up to the answer of the response `previous`; none without one.

    Raises NotFound, InvalidRequest where it has not ended, Unavailable.
    """
    if previous is None:
        return []
    try:
        found = await find(context, previous, tenant)
    except NotFound as error:
        raise NotFound(error.message, param="previous_response_id") from None
    if not found.record.state.terminal:
        raise InvalidRequest("previous_response_id: that response has not ended", param="previous_response_id")
    response = await describe(context, found)
    return [*found.items, *conversation_items(response.output)]
