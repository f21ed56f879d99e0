"""The whole installation at a glance, its workers, and the audit log, on the admin port."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.model_catalog import Snapshot
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.openapi.pagination import limit_of, limit_parameter
from producer_api.openapi.parameters import parameter
from producer_api.routes.admin_queues import MAX_QUEUES, TENANTS_IN_LIST, queue_views, visible_queues
from producer_api.routes.admin_requests import CURSOR_PARAMETER, MAX_LIMIT, newest
from producer_api.schemas.administration import (
    AuditPage,
    ModelSummary,
    Overview,
    RequestView,
    WorkerList,
    WorkerView,
)
from producer_api.services import Context
from shared.errors import InvalidRequest, NotFound, PermissionDenied

RECENT = 20  # requests in the overview
DEFAULT_ENTRIES = 100
ENTRY_ID = re.compile(r"([1-9]\d{0,14})-(\d{1,15})", re.ASCII)


async def overview(context: Context, caller: Principal) -> Response:
    async with redis_deadline():
        names = await visible_queues(context, caller)
        snapshot = await context.catalog.snapshot()
        queues = await queue_views(context, names[:MAX_QUEUES], TENANTS_IN_LIST)
        recent, _ = await newest(context, names[:MAX_QUEUES], lambda _: True, RECENT)
        at = await context.backend.token_log.now()
    found = Overview(
        at=at,
        models=_models(snapshot, names),
        queues=queues,
        workers=_workers(snapshot, caller),
        recent=[RequestView.from_record(each) for each in recent],
        truncated=len(names) > MAX_QUEUES,
    )
    return json_response(found)


def _models(snapshot: Snapshot, names: list[str]) -> list[ModelSummary]:
    workers = Counter(each.model for each in snapshot.workers)
    ready = Counter(each.model for each in snapshot.workers if each.state == "ready" and not each.fault)
    return [
        ModelSummary(name, snapshot.served[name].task, name in snapshot.asleep, workers[name], ready[name])
        for name in names
        if name in snapshot.served
    ]


def _workers(snapshot: Snapshot, caller: Principal) -> list[WorkerView]:
    shown = (each for each in snapshot.workers if caller.may_use(each.model))
    return [WorkerView.from_info(each) for each in sorted(shown, key=lambda each: (each.model, each.id))]


async def list_workers(context: Context, request: Request, caller: Principal) -> Response:
    model = request.query_params.get("model")
    if model is not None:
        caller.check_model(model)
    async with redis_deadline():
        if model is not None:
            await context.catalog.describe(model)
        snapshot = await context.catalog.snapshot()
    return json_response(WorkerList([each for each in _workers(snapshot, caller) if model in (None, each.model)]))


async def see_worker(context: Context, worker_id: str, caller: Principal) -> Response:
    async with redis_deadline():
        snapshot = await context.catalog.snapshot()
    for each in _workers(snapshot, caller):
        if each.id == worker_id:
            return json_response(each)
    raise NotFound(f"there is no worker {worker_id[:128]!r}")


async def audit_log(context: Context, request: Request, caller: Principal) -> Response:
    if caller.scopes.models is not None:
        raise PermissionDenied("this key may use some models only, and the audit log has actions on all")
    limit = limit_of(request, DEFAULT_ENTRIES, MAX_LIMIT)
    given = request.query_params.get("cursor")
    before = None
    if given is not None:
        if (found := ENTRY_ID.fullmatch(given)) is None:
            raise InvalidRequest("cursor must be a next_cursor of an earlier page", param="cursor")
        before = int(found[1]), int(found[2])
    async with redis_deadline():
        entries = list(await context.backend.audit.list(limit, before=before))
    return json_response(AuditPage(entries, entries[-1].id if len(entries) == limit else None))


_endpoint = partial(Endpoint, group=None, admin=True, tag="Operation")
ADMIN_ENDPOINTS = (
    _endpoint(
        "GET",
        "/admin/overview",
        overview,
        summary="Get models, queues, workers and recent requests at once",
        responses=(ResponseDoc("the installation", Overview),),
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        "/admin/workers",
        list_workers,
        summary="List the workers",
        parameters=[parameter("model", "query", "only those of this model", type="string")],
        responses=(ResponseDoc("the workers, by model and id", WorkerList),),
        failures=(403, 404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/admin/workers/{worker_id}",
        see_worker,
        summary="Get a worker",
        responses=(ResponseDoc("the worker", WorkerView),),
        failures=(404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/admin/audit",
        audit_log,
        summary="List what administrators changed, newest first",
        parameters=[
            limit_parameter(DEFAULT_ENTRIES, MAX_LIMIT, "actions"),
            CURSOR_PARAMETER,
        ],
        responses=(ResponseDoc("a page of actions", AuditPage),),
        failures=(400, 403, 500, 503),
    ),
)
