"""The queues on the admin port: shares of classes and tenants; pause, resume and drain."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import ANONYMOUS, Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.schemas.administration import GateState, QueueList
from producer_api.services import Context
from shared.accounts.api_keys import ApiKeys
from shared.accounts.scopes import TENANT
from shared.errors import ModelNotFound, NotFound
from shared.queue.survey import Gate, QueueSurvey, QueueView, view_of

MAX_QUEUES = 100  # that one call describes
MAX_TENANTS = 200  # of one queue; with more, shares are unknown
MAX_HELD = 500  # requests that workers hold, of one queue, whose tenants are counted
TENANTS_IN_LIST = 20  # of each queue


async def list_queues(context: Context, caller: Principal) -> Response:
    async with redis_deadline():
        names = await visible_queues(context, caller)
        views = await queue_views(context, names[:MAX_QUEUES], TENANTS_IN_LIST)
    return json_response(QueueList(views, len(names) > MAX_QUEUES))


async def see(context: Context, name: str, caller: Principal) -> Response:
    async with redis_deadline():
        await check_queue(context, name, caller)
        [view] = await queue_views(context, [name], MAX_TENANTS)
    return json_response(view)


async def visible_queues(context: Context, caller: Principal) -> list[str]:
    """Return the models whose queues the caller may see, by name."""
    return sorted(info.name for info in await context.catalog.served() if caller.may_use(info.name))


async def queue_views(context: Context, names: Sequence[str], most_tenants: int) -> list[QueueView]:
    """Return the views of queues, with at most so many tenants of each. Raises Unavailable.

    Shares are computed from all tenants, as far as there are at most MAX_TENANTS.
    """

    async def view(name: str) -> QueueView:
        survey = await context.backend.queues.survey(name, MAX_TENANTS)
        return view_of(name, survey, await _held_by(context, name, survey), most_tenants)

    return list(await asyncio.gather(*(view(name) for name in names)))


async def _held_by(context: Context, name: str, survey: QueueSurvey) -> Mapping[str, int] | None:
    """Return how many requests workers hold of each tenant; None if there are too many to count."""
    total = sum(survey.held.values())
    if total > MAX_HELD:
        return None
    ids = await context.backend.queues.holding(name, MAX_HELD) if total else []
    records = await context.backend.token_log.records(ids) if ids else []
    return Counter(record.tenant for record in records if record is not None)


async def _set(context: Context, name: str, caller: Principal, gate: Gate, tenant: str | None = None) -> Response:
    """Raises PermissionDenied, ModelNotFound, NotFound, Conflict, Unavailable."""
    async with redis_deadline():
        await check_queue(context, name, caller)
        if tenant is not None:
            await _check_tenant(context, name, tenant)
        await context.backend.queues.set_gate(name, gate, tenant)
        context.catalog.forget_snapshot()
    return json_response(GateState(name, tenant, gate))


async def pause(context: Context, name: str, caller: Principal) -> Response:
    return await _set(context, name, caller, "paused")


async def resume(context: Context, name: str, caller: Principal) -> Response:
    return await _set(context, name, caller, "open")


async def drain(context: Context, name: str, caller: Principal) -> Response:
    return await _set(context, name, caller, "draining")


async def pause_tenant(context: Context, name: str, tenant_name: str, caller: Principal) -> Response:
    return await _set(context, name, caller, "paused", tenant_name)


async def resume_tenant(context: Context, name: str, tenant_name: str, caller: Principal) -> Response:
    return await _set(context, name, caller, "open", tenant_name)


async def drain_tenant(context: Context, name: str, tenant_name: str, caller: Principal) -> Response:
    return await _set(context, name, caller, "draining", tenant_name)


async def check_queue(context: Context, name: str, caller: Principal) -> None:
    """Raise PermissionDenied or ModelNotFound unless the caller may see the queue of a model."""
    caller.check_model(name)
    if name not in {info.name for info in await context.catalog.served()}:
        raise ModelNotFound(f"the model {name[:128]!r} does not exist", param="model")


async def _check_tenant(context: Context, name: str, tenant: str) -> None:
    """Raise NotFound for a tenant that owns no API key, and of which the queue knows nothing.

    With JWTs, it may be any valid name: only their issuer knows which tenants there are.
    """
    settings = context.settings
    if tenant == ANONYMOUS.tenant and not settings.auth:
        return
    if settings.auth and settings.jwt_jwks is not None and TENANT.fullmatch(tenant):
        return
    if await context.backend.queues.knows(name, tenant):
        return
    if settings.auth and await ApiKeys(context.database, b"").list(tenant=tenant):
        return
    raise NotFound(f"the queue of {name} has no requests of the tenant {tenant[:128]!r}, which owns no API key")


_endpoint = partial(Endpoint, group=None, admin=True, tag="Operation")
_change = partial(
    _endpoint,
    "POST",
    responses=(ResponseDoc("its state from now on", GateState),),
    failures=(403, 404, 409, 500, 503),
)
_TENANT = "/admin/queues/{name:path}/tenants/{tenant_name:path}"
_MODEL = "/admin/queues/{name:path}"
ADMIN_ENDPOINTS = (
    _change(f"{_TENANT}/pause", pause_tenant, summary="Pause a tenant in a model's queue"),
    _change(f"{_TENANT}/resume", resume_tenant, summary="Resume a tenant in a model's queue"),
    _change(f"{_TENANT}/drain", drain_tenant, summary="Refuse new requests of a tenant to a model"),
    _change(f"{_MODEL}/pause", pause, summary="Pause a model's queue"),
    _change(f"{_MODEL}/resume", resume, summary="Resume a model's queue"),
    _change(f"{_MODEL}/drain", drain, summary="Refuse new requests to a model"),
    _endpoint(
        "GET",
        "/admin/queues",
        list_queues,
        summary="List the queues",
        responses=(ResponseDoc(f"the queues, each with at most {TENANTS_IN_LIST} tenants", QueueList),),
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        _MODEL,
        see,
        summary="Get a model's queue with its classes and tenants",
        responses=(ResponseDoc(f"the queue with at most {MAX_TENANTS} tenants", QueueView),),
        failures=(403, 404, 500, 503),
    ),
)
