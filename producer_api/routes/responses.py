"""OpenAI's responses: create, streamed or whole or in the background; see, resume, cancel and delete stored ones.

A client that leaves cancels its response, unless that is in the background or was sent with an Idempotency-Key.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.gateway import Admission
from producer_api.answers import stored_responses as stored
from producer_api.answers.reply import Reply
from producer_api.answers.response_stream import ResponseFraming, complete_response, with_identity
from producer_api.auth.principal import Caller, Principal, Tenant
from producer_api.http.endpoint import Route
from producer_api.http.headers import REPLAYED, idempotency_key, resume_point
from producer_api.http.json_body import drafts, json_answer, off_loop, read_body
from producer_api.http.sse import EventStream
from producer_api.openapi.document import (
    IDEMPOTENCY,
    RESUMING,
    body_of,
    failures,
    parameter,
    sse_response,
    struct_response,
)
from producer_api.openapi.pagination import ORDER, Page, paging
from producer_api.services import Context
from shared.errors import InvalidRequest
from shared.schemas.openai.response_object import ItemList, ResponseDeleted, ResponseObject
from shared.schemas.openai.responses import ResponseRequest

STARTING_AFTER = "starting_after"
STREAM = parameter("stream", "query", "tell its events, from the first on", type="boolean")
AFTER = parameter(
    STARTING_AFTER, "query", "with stream: only the events after the one of this number", type="integer", minimum=-1
)
USUAL, MOST = 20, 100  # input items listed at once


def responses_router(context: Context) -> APIRouter:
    router = APIRouter(
        route_class=Route, prefix="/v1/responses", tags=["OpenAI"], dependencies=[context.allow("responses")]
    )
    seen = {**failures("openai", 404, 500, 503), 200: struct_response("as it stands", ResponseObject)}

    @router.post(
        "",
        summary="Create a response",
        openapi_extra=body_of(ResponseRequest) | {"parameters": [IDEMPOTENCY, RESUMING]},
        responses={
            **failures("openai", 400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
            **sse_response("the response; in the background, as it stands; with `stream`, events", ResponseObject),
        },
    )
    async def create(request: Request, caller: Caller) -> Response:
        return await _create(context, request, caller, await read_body(request, ResponseRequest))

    @router.get(
        "/{response_id}",
        summary="See a stored response, or go on with its stream",
        openapi_extra={"parameters": [STREAM, AFTER, RESUMING]},
        responses={
            **failures("openai", 400, 404, 500, 503),
            **sse_response("as it stands; with `stream`, its events", ResponseObject),
        },
    )
    async def retrieve(request: Request, response_id: str, tenant: Tenant) -> Response:
        stream = _flag(request, "stream")
        after = resume_point(request, STARTING_AFTER)
        if after >= 0 and not stream:
            raise InvalidRequest(f"{STARTING_AFTER}: only allowed with stream", param=STARTING_AFTER)
        found = await stored.find(context, response_id, tenant)
        if not stream:
            return json_answer(await stored.describe(context, found))
        events = context.backend.token_log.follow(found.record.id, idle=context.settings.keepalive)
        framing = ResponseFraming(found.response, after=after, resumable=True)
        return EventStream(events, framing, context.attendance, eager=True, abandon=None)

    @router.post("/{response_id}/cancel", summary="Cancel a stored response", responses=seen)
    async def cancel(response_id: str, tenant: Tenant) -> Response:
        found = await stored.find(context, response_id, tenant)
        await context.request_control.cancel(found.record.id)
        return json_answer(await stored.describe(context, await stored.find(context, response_id, tenant)))

    @router.delete(
        "/{response_id}",
        summary="Delete a stored response",
        responses={**failures("openai", 404, 500, 503), 200: struct_response("it is gone", ResponseDeleted)},
    )
    async def delete(response_id: str, tenant: Tenant) -> Response:
        found = await stored.find(context, response_id, tenant)
        await context.request_control.forget(found.record.id)
        return json_answer(ResponseDeleted(response_id))

    @router.get(
        "/{response_id}/input_items",
        summary="List what a stored response went on from",
        openapi_extra={"parameters": [*paging(USUAL, MOST), ORDER]},
        responses={**failures("openai", 400, 404, 500, 503), 200: struct_response("its items", ItemList)},
    )
    async def input_items(request: Request, response_id: str, tenant: Tenant) -> Response:
        page = Page.of(request, usual=USUAL, most=MOST)
        found = await stored.find(context, response_id, tenant)
        return json_answer(_listed(found, page))

    return router


async def _create(context: Context, request: Request, caller: Principal, body: ResponseRequest) -> Response:
    key = await idempotency_key(request, tenant=caller.tenant, kind="response", body=body)
    after = resume_point(request, resumable=bool(body.stream) and key is not None)
    body.check()
    items = await stored.conversation(context, body.previous_response_id, caller.tenant)
    items += await off_loop(request, lambda: [item.to_item() for item in body.input])
    asked = body.to_object()
    [draft] = await drafts(request, lambda: [body.to_request(caller.tenant, items)])
    admission = await context.gateway.submit(
        draft,
        principal=caller,
        seed=body.seed,
        timeout_s=body.timeout,
        key=key,
        resuming=after >= 0,
        keepsake=stored.keepsake(context, asked, items) if body.stored else None,
    )
    asked = with_identity(asked, admission.request)
    if body.background and not body.stream:
        return await _accepted(context, request, admission, asked)
    detached = bool(body.background) or key is not None
    reply = Reply(context, request.state.facts, admission, detached=detached)
    if body.stream:
        framing = ResponseFraming(asked, after=after, resumable=detached)
        return reply.stream(framing, eager=bool(body.background) or after >= 0)
    return await reply.complete(request, partial(complete_response, asked))


async def _accepted(context: Context, request: Request, admission: Admission, asked: ResponseObject) -> Response:
    """The response as it stands."""
    made = admission.request
    context.note(request.state.facts, made)
    if not admission.joined:
        return json_answer(asked)
    return json_answer(
        await stored.describe(context, await stored.find(context, asked.id, made.tenant)), headers=REPLAYED
    )


def _listed(found: stored.StoredResponse, page: Page) -> ItemList:
    items = list(found.items) if page.oldest_first else list(found.items)[::-1]
    ids = [item.id for item in items]
    start = ids.index(page.after) + 1 if page.after in ids else len(ids) if page.after else 0
    data = items[start : start + page.limit]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ItemList(data, first, last, has_more=start + page.limit < len(items))


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false")
    if given not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return given == "true"
