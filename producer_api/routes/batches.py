"""OpenAI's batches: create, list, show and cancel. `batch_runner` runs them. Another tenant's batch is a 404."""

from __future__ import annotations

import secrets
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.gateway import FIRST_CHECK_DELAY_S
from producer_api.admission.idempotency import IdempotencyKey, Identity
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.endpoint_table import EndpointTable
from producer_api.http.errors import OPENAI
from producer_api.http.headers import REPLAYED, idempotency_key
from producer_api.http.json_body import json_response, read_body
from producer_api.openapi.pagination import Page, page_parameters
from producer_api.openapi.parameters import IDEMPOTENCY
from producer_api.schemas.batches import BatchList, BatchObject, BatchRequest, window_seconds
from producer_api.services import Context
from producer_api.webhooks.subscription import validated_hook, webhook_status
from shared.batches.store import Batch, Batches
from shared.errors import HeadraceError, InvalidRequest, Unavailable
from shared.files.store import Files
from shared.protocol import PriorityClass
from shared.schemas.parsing import InvalidFields
from shared.webhooks.interface import Hook, Webhook

DEFAULT_LIMIT, MAX_LIMIT = 20, 100  # batches in one page


async def create(context: Context, files: Files, batches: Batches, request: Request, caller: Principal) -> Response:
    caller.check_class(PriorityClass.BATCH)
    body = await read_body(request, BatchRequest)
    _check_endpoint(request, body.endpoint)
    key = await idempotency_key(request, tenant=caller.tenant, kind="batch", body=body)
    hook = validated_hook(context.settings, body.webhook)
    async with redis_deadline():
        batch, joined = await _create(context, files, batches, caller, body=body, hook=hook, key=key)
    described = await _describe(context, batches, batch, caller.tenant)
    return json_response(described, headers=REPLAYED if joined else None)


async def all_batches(request: Request, batches: Batches, tenant: str) -> Response:
    page = Page.from_request(request, default=DEFAULT_LIMIT, maximum=MAX_LIMIT)
    async with redis_deadline():
        found = list(await batches.list(tenant, after=page.after, most=page.limit + 1))
    shown = [BatchObject.from_record(record) for record in found[: page.limit]]
    ids: list[str | None] = [*(each.id for each in shown)] or [None]
    return json_response(BatchList(shown, len(found) > page.limit, ids[0], ids[-1]))


async def see(context: Context, batches: Batches, batch_id: str, tenant: str) -> Response:
    return json_response(await _describe(context, batches, batch_id, tenant))


async def cancel(context: Context, batches: Batches, batch_id: str, tenant: str) -> Response:
    async with redis_deadline():
        await batches.get(batch_id, tenant)
        await batches.cancel(batch_id)
    return json_response(await _describe(context, batches, batch_id, tenant))


async def _describe(context: Context, batches: Batches, batch_id: str, tenant: str) -> BatchObject:
    async with redis_deadline():
        record = await batches.get(batch_id, tenant)
    return BatchObject.from_record(record, await webhook_status(context, batch_id))


def _check_endpoint(request: Request, endpoint: str) -> None:
    """Raises InvalidFields for a path that batches cannot use."""
    table: EndpointTable = request.app.state.endpoints
    if endpoint not in table.batchable:
        raise InvalidFields([("endpoint", f"must be one of {', '.join(table.batchable)}")])


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
    """Return the id of the new batch, or of the one created before under the key, and whether it is that one."""
    now = await context.backend.token_log.now()
    identity = Identity(f"batch_{secrets.token_hex(16)}", now, 0, key.fingerprint if key else "")
    held = identity if key is None else await context.idempotency_keys.take(key, identity)
    try:
        file = await files.find(body.input_file_id, caller.tenant)
        if file.purpose != "batch":
            raise InvalidRequest(
                f"input_file_id must be a file with purpose batch, got purpose {file.purpose}",
                param="input_file_id",
            )
        if hook is not None:  # first: if the batch is not created after all, the hook is dropped
            await context.backend.webhooks.add(Webhook(id=held.id, hook=hook, created_at=now), FIRST_CHECK_DELAY_S)
        await batches.create(_batch(context, caller, body, held))
    except Unavailable:
        raise  # the batch may exist: a retry with the key finds or creates it
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
        traceparent=caller.client.traceparent,
        models=caller.scopes.models,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=identity.created_at,
        expires_at=identity.created_at + window_seconds(body.completion_window),
        output_life=context.settings.file_ttl if outputs is None else outputs.seconds,
        metadata=body.metadata,
    )


_endpoint = partial(Endpoint, group="batches", errors=OPENAI, tag="OpenAI")
ENDPOINTS = (
    _endpoint(
        "POST",
        "/v1/batches",
        create,
        summary="Create a batch",
        body=BatchRequest,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the batch, before its validation", BatchObject),),
        failures=(400, 404, 413, 415, 422, 429, 500, 503),
        examples={
            "A batch": {
                "input_file_id": "file-of-your-upload",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
        },
    ),
    _endpoint(
        "GET",
        "/v1/batches",
        all_batches,
        summary="List the batches, newest first",
        parameters=page_parameters(DEFAULT_LIMIT, MAX_LIMIT),
        responses=(ResponseDoc("a page of batches", BatchList),),
        failures=(400, 404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/batches/{batch_id}",
        see,
        summary="Get a batch",
        responses=(ResponseDoc("the batch", BatchObject),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "POST",
        "/v1/batches/{batch_id}/cancel",
        cancel,
        summary="Cancel a batch; its output has the lines that have run",
        responses=(ResponseDoc("the batch", BatchObject),),
        failures=(404, 409, 500, 503),
    ),
)
