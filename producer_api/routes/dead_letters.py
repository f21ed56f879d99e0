"""Dead letters: list, show, replay and delete failed requests. Each tenant sees its own; the admin port, all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.idempotency import HEADER, IdempotencyKey
from producer_api.answers.jobs import describe
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import NATIVE
from producer_api.http.json_body import json_response
from producer_api.openapi.pagination import limit_of, limit_parameter
from producer_api.openapi.parameters import IDEMPOTENCY, parameter
from producer_api.routes.jobs import accepted, job_response
from producer_api.schemas.dead_letters import Letter, LetterList, Removed
from producer_api.services import Context
from shared.dead_letters.store import DeadLetter
from shared.errors import NotFound
from shared.schemas.native.jobs import Job
from shared.validation.ttft_target import without_target

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000  # letters in one page
PAGE_SIZE = 200
LIMIT = limit_parameter(DEFAULT_LIMIT, MAX_LIMIT, "letters")
AFTER = parameter("after", "query", "only letters older than the one with this id", type="string")


async def all_letters(context: Context, request: Request, caller: Principal, owner: str | None) -> Response:
    limit, found = limit_of(request, DEFAULT_LIMIT, MAX_LIMIT), []
    async for letter in _visible(context, request.query_params.get("after", ""), caller, owner):
        found.append(Letter.from_dead_letter(letter))
        if len(found) == limit:
            break
    return json_response(LetterList(found))


async def purge(context: Context, caller: Principal, owner: str | None) -> Response:
    letter_ids = [letter.id async for letter in _visible(context, "", caller, owner)]
    async with redis_deadline():
        return json_response(Removed(await context.backend.dead_letters.remove(letter_ids) if letter_ids else 0))


async def see(context: Context, letter_id: str, caller: Principal, owner: str | None) -> Response:
    letter = await _find(context, letter_id, caller, owner)
    return json_response(Letter.from_dead_letter(letter, with_request=True))


async def remove(context: Context, letter_id: str, caller: Principal, owner: str | None) -> Response:
    await _find(context, letter_id, caller, owner)
    async with redis_deadline():
        return json_response(Removed(await context.backend.dead_letters.remove([letter_id])))


async def replay(
    context: Context, request: Request, letter_id: str, caller: Principal, owner: str | None
) -> Response:
    key = IdempotencyKey.from_header(
        request.headers.getlist(HEADER), tenant=caller.tenant, kind="replay", body=letter_id
    )
    try:
        letter = await _find(context, letter_id, caller, owner)
        draft = without_target(msgspec.structs.replace(letter.request.as_named(), deadline=None))
    except NotFound:  # replayed before, perhaps under this key
        if key is None or (before := await context.gateway.find_by_key(key, owner)) is None:
            raise
        return job_response(await describe(context, before), joined=True)
    admission = await context.gateway.submit(draft, principal=caller, seed=draft.params.seed, key=key)
    async with redis_deadline():
        await context.backend.dead_letters.remove([letter_id])
    return await accepted(context, request, admission)


async def _find(context: Context, letter_id: str, caller: Principal, owner: str | None) -> DeadLetter:
    """Return a letter.

    Raises NotFound for an unknown id and for another tenant's; on the admin port, PermissionDenied for one of a
    model that the caller's key may not administer.
    """
    async with redis_deadline():
        letter = await context.backend.dead_letters.get(letter_id)
    if letter is None or owner not in (None, letter.request.tenant):
        raise NotFound(f"there is no dead letter {letter_id[:64]!r}")
    if owner is None:
        caller.check_model(letter.request.named_model)
    return letter


async def _visible(context: Context, after: str, caller: Principal, owner: str | None) -> AsyncIterator[DeadLetter]:
    """Yield the letters of a tenant, newest first; on the admin port, those of models that the caller may use."""
    while True:
        async with redis_deadline():
            page = await context.backend.dead_letters.list(after=after, most=PAGE_SIZE)
        for letter in page:
            if caller.may_use(letter.request.named_model) if owner is None else owner == letter.request.tenant:
                yield letter
        if len(page) < PAGE_SIZE:
            return
        after = page[-1].id


_endpoint = partial(Endpoint, group="dead-letters", errors=NATIVE, tag="Dead letters")
ENDPOINTS = (
    _endpoint(
        "GET",
        "/v1/dead-letters",
        all_letters,
        summary="List the dead letters, newest first",
        parameters=[LIMIT, AFTER],
        responses=(ResponseDoc("the letters", LetterList),),
        failures=(400, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/dead-letters",
        purge,
        summary="Delete all dead letters",
        responses=(ResponseDoc("the number of deleted letters", Removed),),
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/dead-letters/{letter_id}",
        see,
        summary="Get a dead letter with its request",
        responses=(ResponseDoc("the letter", Letter),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/dead-letters/{letter_id}",
        remove,
        summary="Delete a dead letter",
        responses=(ResponseDoc("1", Removed),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "POST",
        "/v1/dead-letters/{letter_id}/replay",
        replay,
        charged=True,
        summary="Replay a dead letter as a new job",
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the new job; the letter is deleted", Job, status=202),),
        failures=(400, 404, 422, 429, 500, 503),
    ),
)
ADMIN_ENDPOINTS = tuple(replace(each, admin=True) for each in ENDPOINTS)  # over the letters of all tenants
