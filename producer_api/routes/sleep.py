"""Sleep and wake of models: the workers release a sleeping model's weights, and its requests wait in the queue.

vLLM's routes do the same for the default model. Its `level` 0 keeps the weights, and its `mode` abort ends running
requests; neither is supported.
"""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.openapi.parameters import parameter
from producer_api.services import Context
from shared.errors import Conflict, InvalidRequest

LEVELS, MODES = ("1", "2"), ("wait", "keep")


class SleepState(msgspec.Struct):
    """State that a model was put into; its workers follow within seconds."""

    model: str
    asleep: bool


class IsSleeping(msgspec.Struct):
    """True once no worker holds the default model's weights."""

    is_sleeping: bool


async def sleep(context: Context, name: str) -> Response:
    return await _set_asleep(context, name, asleep=True)


async def wake(context: Context, name: str) -> Response:
    return await _set_asleep(context, name, asleep=False)


async def sleep_default(context: Context, request: Request, caller: Principal) -> Response:
    caller.check_model(context.catalog.served_model)
    for field, allowed in (("level", LEVELS), ("mode", MODES)):
        if request.query_params.get(field, allowed[0]) not in allowed:
            raise InvalidRequest(f"{field} must be {' or '.join(allowed)}", param=field)
    return await _set_asleep(context, context.catalog.served_model, asleep=True)


async def wake_default(context: Context, caller: Principal) -> Response:
    caller.check_model(context.catalog.served_model)
    return await _set_asleep(context, context.catalog.served_model, asleep=False)


async def is_sleeping(context: Context, caller: Principal) -> Response:
    model = context.catalog.served_model
    caller.check_model(model)
    async with redis_deadline():
        asleep = model in await context.catalog.asleep()
        workers = await context.catalog.workers(model)
    return json_response(IsSleeping(asleep and all(worker.state == "sleeping" for worker in workers)))


async def _set_asleep(context: Context, name: str, *, asleep: bool) -> Response:
    """Raises ModelNotFound; Conflict if `min_workers` must be kept."""
    if asleep and name == context.catalog.served_model and context.settings.min_workers:
        raise Conflict(f"{name} cannot be put to sleep: min_workers is {context.settings.min_workers}")
    async with redis_deadline():
        await context.catalog.set_asleep(name, asleep=asleep)
    return json_response(SleepState(name, asleep))


_endpoint = partial(Endpoint, group=None, admin=True, tag="Operation")
_STATE = (ResponseDoc("the state that the model's workers take", SleepState),)
ADMIN_ENDPOINTS = (
    _endpoint(
        "POST",
        "/admin/models/{name:path}/sleep",
        sleep,
        summary="Put a model to sleep",
        responses=_STATE,
        failures=(404, 409, 500, 503),
    ),
    _endpoint(
        "POST",
        "/admin/models/{name:path}/wake",
        wake,
        summary="Wake a model",
        responses=_STATE,
        failures=(404, 500, 503),
    ),
    _endpoint(
        "POST",
        "/sleep",
        sleep_default,
        summary="Put the default model to sleep, as vLLM does",
        parameters=[
            parameter("level", "query", "1 or 2; both release the weights", type="string", enum=list(LEVELS)),
            parameter(
                "mode", "query", "wait or keep; running requests are never aborted", type="string", enum=list(MODES)
            ),
        ],
        responses=_STATE,
        failures=(400, 409, 500, 503),
    ),
    _endpoint(
        "POST",
        "/wake_up",
        wake_default,
        summary="Wake the default model, as vLLM does",
        responses=_STATE,
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        "/is_sleeping",
        is_sleeping,
        summary="Does the default model sleep?",
        responses=(ResponseDoc("true once no worker holds its weights", IsSleeping),),
        failures=(500, 503),
    ),
)
