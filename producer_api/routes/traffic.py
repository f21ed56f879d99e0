"""Aliases, splits of traffic and shadow copies, on the admin port."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response, read_body
from producer_api.schemas.traffic import RuleRemoved, ShadowBody, SplitBody, TrafficRules
from producer_api.services import Context
from shared.errors import ModelNotFound
from shared.repository.traffic.pairs import Comparison, summarize
from shared.repository.traffic.rules import Shadow, Split, check_shadow, check_split


async def rules(context: Context, caller: Principal) -> Response:
    async with redis_deadline():
        found = await context.backend.traffic.traffic()
    splits = [found.splits[name] for name in sorted(found.splits) if caller.may_use(name)]
    shadows = [found.shadows[name] for name in sorted(found.shadows) if caller.may_use(name)]
    return json_response(TrafficRules(splits, shadows))


async def split(context: Context, request: Request, name: str, caller: Principal) -> Response:
    made = (await read_body(request, SplitBody)).to_split(name)
    async with redis_deadline():
        check_split(made, await context.backend.traffic.traffic())
        for i, branch in enumerate(made.branches):
            await _check_served(context, caller, branch.model, f"branches[{i}].model")
        await context.backend.traffic.set_split(made)
    context.catalog.forget_snapshot()
    return json_response(made)


async def unsplit(context: Context, name: str) -> Response:
    async with redis_deadline():
        removed = await context.backend.traffic.remove_split(name)
    context.catalog.forget_snapshot()
    return json_response(RuleRemoved(name, removed))


async def shadow(context: Context, request: Request, name: str, caller: Principal) -> Response:
    made = (await read_body(request, ShadowBody)).to_shadow(name)
    async with redis_deadline():
        check_shadow(made, await context.backend.traffic.traffic())
        await _check_served(context, caller, made.model, "model")
        await context.backend.traffic.set_shadow(made)
    context.catalog.forget_snapshot()
    return json_response(made)


async def unshadow(context: Context, name: str) -> Response:
    async with redis_deadline():
        removed = await context.backend.traffic.remove_shadow(name)
    context.catalog.forget_snapshot()
    return json_response(RuleRemoved(name, removed))


async def comparison(context: Context, name: str) -> Response:
    async with redis_deadline():
        pairs = await context.backend.traffic.pairs(name)
    return json_response(summarize(name, pairs))


async def _check_served(context: Context, caller: Principal, model: str, param: str) -> None:
    """Raise ModelNotFound unless it is a model itself: a split cannot lead to another split.

    Raises PermissionDenied if the caller's key may not use it.
    """
    caller.check_model(model)
    served = {info.name for info in await context.catalog.served()}
    if model not in served:
        raise ModelNotFound(f"{param} must be a served model, got {model!r}", param=param)


_endpoint = partial(Endpoint, group=None, admin=True, tag="Operation")
_SET = (400, 404, 413, 415, 500, 503)
ADMIN_ENDPOINTS = (
    _endpoint(
        "GET",
        "/admin/traffic",
        rules,
        summary="List the aliases, splits and shadow copies",
        responses=(ResponseDoc("all rules", TrafficRules),),
        failures=(500, 503),
    ),
    _endpoint(
        "POST",
        "/admin/models/{name:path}/split",
        split,
        summary="Make a name an alias, or split its traffic",
        body=SplitBody,
        responses=(ResponseDoc("the rule, which replaces that of the same name", Split),),
        failures=_SET,
    ),
    _endpoint(
        "DELETE",
        "/admin/models/{name:path}/split",
        unsplit,
        summary="Remove an alias or a split",
        responses=(ResponseDoc("the name stands for itself again", RuleRemoved),),
        failures=(500, 503),
    ),
    _endpoint(
        "POST",
        "/admin/models/{name:path}/shadow",
        shadow,
        summary="Copy a share of a name's requests to another model",
        body=ShadowBody,
        responses=(ResponseDoc("the rule, which replaces that of the same name and its pairs", Shadow),),
        failures=_SET,
    ),
    _endpoint(
        "DELETE",
        "/admin/models/{name:path}/shadow",
        unshadow,
        summary="Stop shadow copies",
        responses=(ResponseDoc("no more copies are made", RuleRemoved),),
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        "/admin/models/{name:path}/comparison",
        comparison,
        summary="Compare requests with their shadow copies",
        responses=(ResponseDoc("outputs and latencies of the recorded pairs", Comparison),),
        failures=(500, 503),
    ),
)
