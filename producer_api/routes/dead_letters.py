"""Requests that were set aside: to be looked at, run again, or thrown away. Each tenant sees its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import patience
from producer_api.admission.idempotency import HEADER, Key
from producer_api.answers.jobs import describe
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import NATIVE
from producer_api.http.json_body import json_answer
from producer_api.openapi.document import IDEMPOTENCY, parameter
from producer_api.routes.jobs import accepted, told
from producer_api.schemas.dead_letters import Letter, LetterList, Removed
from producer_api.services import Context
from shared.dead_letters.store import DeadLetter
from shared.errors import InvalidRequest, NotFound
from shared.schemas.native.jobs import Job

USUAL, MOST = 100, 1000  # letters of one list
PAGE = 200
LIMIT = parameter("limit", "query", f"most to list; default {USUAL}", type="integer", minimum=1, maximum=MOST)
AFTER = parameter("after", "query", "only those older than the letter with this id", type="string")


async def all_letters(context: Context, request: Request, owner: str | None) -> Response:
    limit, found = _limit(request), []
    async for letter in _of_tenant(context, request.query_params.get("after", ""), owner):
        found.append(Letter.of(letter))
        if len(found) == limit:
            break
    return json_answer(LetterList(found))


async def purge(context: Context, owner: str | None) -> Response:
    letter_ids = [letter.id async for letter in _of_tenant(context, "", owner)]
    async with patience():
        return json_answer(Removed(await context.backend.dead_letters.remove(letter_ids) if letter_ids else 0))


async def see(context: Context, letter_id: str, owner: str | None) -> Response:
    return json_answer(Letter.of(await _find(context, letter_id, owner), whole=True))


async def remove(context: Context, letter_id: str, owner: str | None) -> Response:
    await _find(context, letter_id, owner)
    async with patience():
        return json_answer(Removed(await context.backend.dead_letters.remove([letter_id])))


async def replay(
    context: Context, request: Request, letter_id: str, caller: Principal, owner: str | None
) -> Response:
    key = Key.of(request.headers.getlist(HEADER), tenant=caller.tenant, kind="replay", body=letter_id)
    try:
        draft = msgspec.structs.replace((await _find(context, letter_id, owner)).request, deadline=None)
    except NotFound:  # it was replayed before, maybe under this key
        if key is None or (before := await context.gateway.known(key, owner)) is None:
            raise
        return told(await describe(context, before), joined=True)
    admission = await context.gateway.submit(draft, principal=caller, seed=draft.params.seed, key=key)
    async with patience():
        await context.backend.dead_letters.remove([letter_id])
    return await accepted(context, request, admission)


async def _find(context: Context, letter_id: str, owner: str | None) -> DeadLetter:
    """Raises NotFound for an unknown id and for somebody else's alike."""
    async with patience():
        letter = await context.backend.dead_letters.get(letter_id)
    if letter is None or owner not in (None, letter.request.tenant):
        raise NotFound(f"there is no dead letter {letter_id[:64]!r}")
    return letter


async def _of_tenant(context: Context, after: str, owner: str | None) -> AsyncIterator[DeadLetter]:
    """Newest first."""
    while True:
        async with patience():
            page = await context.backend.dead_letters.list(after=after, most=PAGE)
        for letter in page:
            if owner in (None, letter.request.tenant):
                yield letter
        if len(page) < PAGE:
            return
        after = page[-1].id


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(USUAL))
    if not (given.isascii() and given.isdigit() and len(given) <= 4 and 1 <= int(given) <= MOST):
        raise InvalidRequest(f"limit must be a number from 1 to {MOST}", param="limit")
    return int(given)


_endpoint = partial(Endpoint, group="dead-letters", errors=NATIVE, tag="Dead letters")
ENDPOINTS = (
    _endpoint(
        "GET",
        "/v1/dead-letters",
        all_letters,
        summary="List what was set aside, newest first",
        parameters=[LIMIT, AFTER],
        responses=(ResponseDoc("the letters", LetterList),),
        failures=(400, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/dead-letters",
        purge,
        summary="Throw all away",
        responses=(ResponseDoc("how many there were", Removed),),
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/dead-letters/{letter_id}",
        see,
        summary="See one, with its request",
        responses=(ResponseDoc("the letter", Letter),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/dead-letters/{letter_id}",
        remove,
        summary="Throw one away",
        responses=(ResponseDoc("1", Removed),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "POST",
        "/v1/dead-letters/{letter_id}/replay",
        replay,
        charged=True,
        summary="Run one again, as a new job",
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the new job; the letter is gone", Job, status=202),),
        failures=(400, 404, 422, 429, 500, 503),
    ),
)
ADMIN_ENDPOINTS = tuple(replace(each, admin=True) for each in ENDPOINTS)  # over the letters of all tenants
