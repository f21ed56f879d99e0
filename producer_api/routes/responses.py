"""OpenAI's responses: created as a stream, complete or in the background; stored ones can be resumed.

A client that disconnects cancels its response, unless it runs in the background or has an Idempotency-Key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import reading_joined
from producer_api.admission.parsed_body import ParsedBody, refuse_stream
from producer_api.answers import stored_responses as stored
from producer_api.answers.reply import Reply
from producer_api.answers.response_stream import ResponseFraming, complete_response, with_identity
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI, OpenAIErrors
from producer_api.http.headers import REPLAYED, idempotency_key, resume_point
from producer_api.http.json_body import json_response, make_drafts, off_loop, read_body
from producer_api.http.sse import EventStream
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.openapi.pagination import ORDER, Page, page_parameters
from producer_api.openapi.parameters import IDEMPOTENCY, LAST_EVENT_ID, parameter
from producer_api.services import Context
from shared.errors import InvalidRequest, NotFound
from shared.protocol import Request as Draft
from shared.schemas.openai.response_input import ItemReference
from shared.schemas.openai.response_items import Item
from shared.schemas.openai.response_object import InputTokens, ItemList, ResponseDeleted, ResponseObject
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.token_log.answer import Answer, result_of

STARTING_AFTER = "starting_after"
STREAM = parameter("stream", "query", "stream the events from the first on", type="boolean")
AFTER = parameter(
    STARTING_AFTER, "query", "with stream: only the events after this sequence number", type="integer", minimum=-1
)
DEFAULT_LIMIT, MAX_LIMIT = 20, 100  # input items in one page
COUNT_S = 30.0  # how long a count may take by default


async def create(context: Context, request: Request, caller: Principal) -> Response:
    return await _create(context, request, caller, await read_body(request, ResponseRequest))


async def count_input(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, ResponseRequest)
    items = await stored.conversation(context, body.previous_response_id, caller.tenant)
    items += await _input_items(context, request, caller, body)
    draft = await _draft(request, body, lambda: body.to_count(caller.tenant, items))
    admission = await context.gateway.submit(draft, principal=caller, seed=0, timeout_s=body.timeout or COUNT_S)
    reply = Reply(context, request.state.facts, admission, detached=False)
    return await reply.complete(request, lambda answer: InputTokens(len(result_of(answer).tokens)))


async def compact() -> Response:
    raise NotFound("this server does not compact conversations: truncation auto drops their oldest turns")


async def retrieve(context: Context, request: Request, response_id: str, tenant: str) -> Response:
    stream = _flag(request, "stream")
    after = resume_point(request, STARTING_AFTER)
    if after >= 0 and not stream:
        raise InvalidRequest(f"{STARTING_AFTER} is only allowed with stream", param=STARTING_AFTER)
    found = await stored.find(context, response_id, tenant)
    if not stream:
        return json_response(await stored.describe(context, found))
    events = context.backend.token_log.follow(found.record.id, idle=context.settings.keepalive)
    framing = ResponseFraming(found.response, after=after, resumable=True)
    return EventStream(events, framing, context.open_answers, eager=True, abandon=None)


async def cancel(context: Context, response_id: str, tenant: str) -> Response:
    found = await stored.find(context, response_id, tenant)
    await context.request_control.cancel(found.record.id)
    return json_response(await stored.describe(context, await stored.find(context, response_id, tenant)))


async def delete(context: Context, response_id: str, tenant: str) -> Response:
    found = await stored.find(context, response_id, tenant)
    await context.request_control.forget(found.record.id)
    return json_response(ResponseDeleted(response_id))


async def input_items(context: Context, request: Request, response_id: str, tenant: str) -> Response:
    page = Page.from_request(request, default=DEFAULT_LIMIT, maximum=MAX_LIMIT)
    found = await stored.find(context, response_id, tenant)
    return json_response(_listed(found, page))


async def _create(context: Context, request: Request, caller: Principal, body: ResponseRequest) -> Response:
    key = await idempotency_key(request, tenant=caller.tenant, kind="response", body=body)
    after = resume_point(request, resumable=bool(body.stream) and key is not None)
    body.check()
    items = await stored.conversation(context, body.previous_response_id, caller.tenant)
    items += await _input_items(context, request, caller, body)
    asked = body.to_object()
    draft = await _draft(request, body, lambda: body.to_request(caller.tenant, items))
    admission = await context.gateway.submit(
        draft,
        principal=caller,
        seed=body.given_seed,
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


async def _input_items(context: Context, request: Request, caller: Principal, body: ResponseRequest) -> list[Item]:
    """Return the body's items, with those that it refers to."""
    given = await off_loop(request, body.to_items)
    return await stored.resolve(context, given, caller.tenant)


async def _draft(request: Request, body: ResponseRequest, make: Callable[[], Draft]) -> Draft:
    """Return a draft of the body, checked. Raises InvalidRequest, naming a tool as the body does."""
    try:
        [draft] = await make_drafts(request, lambda: [make()])
    except InvalidRequest as error:
        raise body.naming_tools(error) from None
    return draft


async def _accepted(context: Context, request: Request, admission: Admission, asked: ResponseObject) -> Response:
    """Return a response in the background, in its present state."""
    made = admission.request
    context.note(request.state.facts, made)
    if not admission.joined:
        return json_response(asked)
    with reading_joined():
        found = await stored.find(context, asked.id, made.tenant)
    return json_response(await stored.describe(context, found), headers=REPLAYED)


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


def parse_response(data: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
    """Read a body outside of HTTP, where responses are not stored. Raises InvalidRequest, MalformedBody."""
    body = validate(data, ResponseRequest, strict_fields=strict_fields)
    refuse_stream(body.stream)
    for name in ("background", "store", "previous_response_id"):
        if getattr(body, name):
            raise InvalidRequest(f"{name} must be left out: this response cannot be stored", param=name)
    asked = msgspec.structs.replace(body.to_object(), store=False)

    def word(requests: Sequence[Draft], answer: Answer, _: str | None) -> Any:
        return complete_response(with_identity(asked, requests[0]), answer)

    items = [item for item in body.to_items() if not isinstance(item, ItemReference)]
    if len(items) < len(body.input):
        raise InvalidRequest("input must not refer to stored items here", param="input")
    try:
        drafts = (body.to_request(tenant, items),)
    except InvalidRequest as error:
        raise body.naming_tools(error) from None
    classed, ignored = body.priority is not None, ignored_fields(body)
    return ParsedBody(drafts, body.given_seed, body.timeout, word, classed, ignored, body.naming_tools)


RESPONSE_ERRORS = OpenAIErrors(
    field_names=(
        (r"^messages\b.*", "input"),
        (r"^max_tokens$", "max_output_tokens"),
        (r"^reasoning_effort$", "reasoning.effort"),
        (r"^logprobs$", "top_logprobs"),
        (r"^(tools\[\d+\])\.function", r"\1"),
    )
)
_endpoint = partial(Endpoint, group="responses", errors=OPENAI, tag="OpenAI")
ENDPOINTS = (
    _endpoint(
        "POST",
        "/v1/responses",
        create,
        errors=RESPONSE_ERRORS,
        charged=True,
        batchable=parse_response,
        summary="Create a response",
        body=ResponseRequest,
        parameters=[IDEMPOTENCY, LAST_EVENT_ID],
        responses=(
            ResponseDoc(
                "the response; in the background, its present state; with `stream`, events",
                ResponseObject,
                events=(),
            ),
        ),
        failures=(400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
        examples={
            "A question": {
                "model": SERVED_MODEL,
                "input": "What is the capital of France?",
                "max_output_tokens": 64,
            },
            "In the background": {"model": SERVED_MODEL, "input": "Write about rivers.", "background": True},
        },
    ),
    _endpoint(
        "POST",
        "/v1/responses/input_tokens",
        count_input,
        errors=RESPONSE_ERRORS,
        charged=True,
        summary="Count the tokens of a response's input",
        body=ResponseRequest,
        responses=(ResponseDoc("the number of tokens", InputTokens),),
        failures=(400, 404, 413, 415, 429, 500, 503, 504),
        examples={"A question": {"model": SERVED_MODEL, "input": "What is the capital of France?"}},
    ),
    _endpoint("POST", "/v1/responses/compact", compact),
    _endpoint(
        "GET",
        "/v1/responses/{response_id}",
        retrieve,
        summary="Get a stored response, or resume its stream",
        parameters=[STREAM, AFTER, LAST_EVENT_ID],
        responses=(ResponseDoc("the response; with `stream`, its events", ResponseObject, events=()),),
        failures=(400, 404, 500, 503),
    ),
    _endpoint(
        "POST",
        "/v1/responses/{response_id}/cancel",
        cancel,
        summary="Cancel a stored response",
        responses=(ResponseDoc("the response", ResponseObject),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "DELETE",
        "/v1/responses/{response_id}",
        delete,
        summary="Delete a stored response",
        responses=(ResponseDoc("the id of the deleted response", ResponseDeleted),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/responses/{response_id}/input_items",
        input_items,
        summary="List the input items of a stored response",
        parameters=[*page_parameters(DEFAULT_LIMIT, MAX_LIMIT), ORDER],
        responses=(ResponseDoc("the input items", ItemList),),
        failures=(400, 404, 500, 503),
    ),
)
