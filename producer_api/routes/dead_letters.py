"""Requests that were set aside: to be looked at, run again, or thrown away. Each tenant sees its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.idempotency import HEADER, IdempotencyKey
from producer_api.answers.jobs import describe
from producer_api.auth.principal import Caller, Principal
from producer_api.http.endpoint import Route
from producer_api.http.json_body import json_answer
from producer_api.openapi.document import IDEMPOTENCY, failures, parameter, struct_response
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


def dead_letters_router(context: Context, *, admin: bool = False) -> APIRouter:
    """`admin`: over those of all tenants, for who may administer."""
    router = APIRouter(
        route_class=Route,
        prefix="/v1/dead-letters",
        tags=["Dead letters"],
        dependencies=[context.allow("dead-letters", admin=admin)],
    )

    def owner(caller: Principal) -> str | None:
        return None if admin else caller.tenant

    @router.get(
        "",
        summary="List what was set aside, newest first",
        openapi_extra={"parameters": [LIMIT, AFTER]},
        responses={**failures("problem", 400, 500, 503), 200: struct_response("the letters", LetterList)},
    )
    async def all_letters(request: Request, caller: Caller) -> Response:
        limit, found = _limit(request), []
        async for letter in _of_tenant(context, request.query_params.get("after", ""), owner(caller)):
            found.append(Letter.of(letter))
            if len(found) == limit:
                break
        return json_answer(LetterList(found))

    @router.delete(
        "",
        summary="Throw all away",
        responses={**failures("problem", 500, 503), 200: struct_response("how many there were", Removed)},
    )
    async def purge(caller: Caller) -> Response:
        letter_ids = [letter.id async for letter in _of_tenant(context, "", owner(caller))]
        async with redis_deadline():
            return json_answer(Removed(await context.backend.dead_letters.remove(letter_ids) if letter_ids else 0))

    @router.get(
        "/{letter_id}",
        summary="See one, with its request",
        responses={**failures("problem", 404, 500, 503), 200: struct_response("the letter", Letter)},
    )
    async def see(letter_id: str, caller: Caller) -> Response:
        return json_answer(Letter.of(await _find(context, letter_id, owner(caller)), whole=True))

    @router.delete(
        "/{letter_id}",
        summary="Throw one away",
        responses={**failures("problem", 404, 500, 503), 200: struct_response("1", Removed)},
    )
    async def remove(letter_id: str, caller: Caller) -> Response:
        await _find(context, letter_id, owner(caller))
        async with redis_deadline():
            return json_answer(Removed(await context.backend.dead_letters.remove([letter_id])))

    @router.post(
        "/{letter_id}/replay",
        status_code=202,
        summary="Run one again, as a new job",
        openapi_extra={"parameters": [IDEMPOTENCY]},
        responses={
            **failures("problem", 400, 404, 422, 429, 500, 503),
            202: struct_response("the new job; the letter is gone", Job),
        },
    )
    async def replay(request: Request, letter_id: str, caller: Caller) -> Response:
        key = IdempotencyKey.from_header(
            request.headers.getlist(HEADER), tenant=caller.tenant, kind="replay", body=letter_id
        )
        try:
            draft = msgspec.structs.replace((await _find(context, letter_id, owner(caller))).request, deadline=None)
        except NotFound:  # it was replayed before, maybe under this key
            if key is None or (before := await context.gateway.find_by_key(key, owner(caller))) is None:
                raise
            return told(await describe(context, before), joined=True)
        admission = await context.gateway.submit(draft, principal=caller, seed=draft.params.seed, key=key)
        async with redis_deadline():
            await context.backend.dead_letters.remove([letter_id])
        return await accepted(context, request, admission)

    return router


async def _find(context: Context, letter_id: str, owner: str | None) -> DeadLetter:
    """Raises NotFound for an unknown id and for somebody else's alike."""
    async with redis_deadline():
        letter = await context.backend.dead_letters.get(letter_id)
    if letter is None or owner not in (None, letter.request.tenant):
        raise NotFound(f"there is no dead letter {letter_id[:64]!r}")
    return letter


async def _of_tenant(context: Context, after: str, owner: str | None) -> AsyncIterator[DeadLetter]:
    """Newest first."""
    while True:
        async with redis_deadline():
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
