"""OpenAI's batches: made, seen, cancelled here; run by the tasks process. Somebody else's batch is a 404."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.gateway import FIRST_CHECK_DELAY_S
from producer_api.admission.idempotency import IdempotencyKey, Identity
from producer_api.auth.principal import Caller, Principal, Tenant
from producer_api.http.endpoint import Route
from producer_api.http.headers import REPLAYED, idempotency_key
from producer_api.http.json_body import json_answer, read_body
from producer_api.openapi.document import IDEMPOTENCY, body_of, failures, struct_response
from producer_api.openapi.pagination import Page, paging
from producer_api.schemas.batches import BatchList, BatchObject, BatchRequest, window_seconds
from producer_api.services import Context
from producer_api.webhooks.subscription import validated_hook, webhook_status
from shared.batches.store import Batch, Batches
from shared.errors import HeadraceError, InvalidRequest, Unavailable
from shared.files.store import Files
from shared.protocol import PriorityClass
from shared.webhooks.interface import Hook, Webhook

USUAL, MOST = 20, 100  # batches of one list


def batches_router(context: Context, files: Files, batches: Batches) -> APIRouter:
    router = APIRouter(
        route_class=Route, prefix="/v1/batches", tags=["OpenAI"], dependencies=[context.allow("batches")]
    )

    async def described(batch_id: str, tenant: str) -> BatchObject:
        async with redis_deadline():
            record = await batches.get(batch_id, tenant)
        return BatchObject.of(record, await webhook_status(context, batch_id))

    @router.post(
        "",
        summary="Create a batch",
        openapi_extra=body_of(BatchRequest) | {"parameters": [IDEMPOTENCY]},
        responses={
            **failures("openai", 400, 404, 413, 415, 422, 429, 500, 503),
            200: struct_response("the batch, to be validated", BatchObject),
        },
    )
    async def create(request: Request, caller: Caller) -> Response:
        caller.check_class(PriorityClass.BATCH)
        body = await read_body(request, BatchRequest)
        key = await idempotency_key(request, tenant=caller.tenant, kind="batch", body=body)
        hook = validated_hook(context.settings, body.webhook)
        async with redis_deadline():
            batch, joined = await _create(context, files, batches, caller, body=body, hook=hook, key=key)
        return json_answer(await described(batch, caller.tenant), headers=REPLAYED if joined else None)

    @router.get(
        "",
        summary="List the batches, newest first",
        openapi_extra={"parameters": paging(USUAL, MOST)},
        responses={**failures("openai", 400, 404, 500, 503), 200: struct_response("a page of them", BatchList)},
    )
    async def all_batches(request: Request, tenant: Tenant) -> Response:
        page = Page.of(request, usual=USUAL, most=MOST)
        async with redis_deadline():
            found = list(await batches.list(tenant, after=page.after, most=page.limit + 1))
        shown = [BatchObject.of(record) for record in found[: page.limit]]
        ids: list[str | None] = [*(each.id for each in shown)] or [None]
        return json_answer(BatchList(shown, len(found) > page.limit, ids[0], ids[-1]))

    @router.get(
        "/{batch_id}",
        summary="See a batch",
        responses={**failures("openai", 404, 500, 503), 200: struct_response("as it stands", BatchObject)},
    )
    async def see(batch_id: str, tenant: Tenant) -> Response:
        return json_answer(await described(batch_id, tenant))

    @router.post(
        "/{batch_id}/cancel",
        summary="Cancel a batch; what has run by then is in its output",
        responses={**failures("openai", 404, 409, 500, 503), 200: struct_response("as it stands", BatchObject)},
    )
    async def cancel(batch_id: str, tenant: Tenant) -> Response:
        async with redis_deadline():
            await batches.get(batch_id, tenant)
            await batches.cancel(batch_id)
        return json_answer(await described(batch_id, tenant))

    return router


async def _create(
    context: Context,
    files: Files,
    batches: Batches,
    caller: Principal,
    *,
    body: BatchRequest,
    hook: Hook | None,
    key: IdempotencyKey | None,
) -> tuple[str, bool]:
    """The new batch's id, or that of the one that came before under the key."""
    now = await context.backend.token_log.now()
    identity = Identity(f"batch_{secrets.token_hex(16)}", now, 0, key.fingerprint if key else "")
    held = identity if key is None else await context.idempotency_keys.take(key, identity)
    try:
        file = await files.find(body.input_file_id, caller.tenant)
        if file.purpose != "batch":
            raise InvalidRequest(f"the file's purpose is {file.purpose}, not batch", param="input_file_id")
        if hook is not None:  # first: where there is no such batch in the end, it is dropped
            await context.backend.webhooks.add(Webhook(id=held.id, hook=hook, created_at=now), FIRST_CHECK_DELAY_S)
        await batches.create(_batch(context, caller, body, held))
    except Unavailable:
        raise  # it may have been made: whoever sends the key again finds out, or makes it
    except HeadraceError:
        if key is not None and held == identity:
            await context.idempotency_keys.release(key, held)
        raise
    return held.id, held != identity


def _batch(context: Context, caller: Principal, body: BatchRequest, identity: Identity) -> Batch:
    outputs = body.output_expires_after
    return Batch(
        id=identity.id,
        tenant=caller.tenant,
        key_id=caller.key_id,
        plan=caller.plan,
        models=caller.scopes.models,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=identity.created_at,
        expires_at=identity.created_at + window_seconds(body.completion_window),
        output_life=context.settings.file_ttl if outputs is None else outputs.seconds,
        metadata=body.metadata,
    )
