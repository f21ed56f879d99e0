"""KServe's protocol (v2) over HTTP: health, and the description of the server and its models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, Handler, ResponseDoc
from producer_api.http.errors import KSERVE
from producer_api.http.json_body import json_response
from producer_api.http.open_streams import shutdown_error
from producer_api.kserve import model_views
from producer_api.kserve.content_coding import read_payload
from producer_api.kserve.served_models import ServedModel, find, visible_models
from producer_api.routes.health import readiness
from producer_api.schemas.kserve import IndexBody, ModelMetadata, ModelStatisticsList, ServerMetadata
from producer_api.services import Context
from shared.errors import Unavailable
from shared.schemas.parsing import validate

MODEL = "/v2/models/{name:path}"
VERSION = MODEL + "/versions/{version}"


async def live() -> Response:
    return Response()


async def ready(context: Context) -> Response:
    await check_server_ready(context)
    return Response()


async def check_server_ready(context: Context) -> None:
    """Raise Unavailable unless the default model is served, or any model of the repository is ready."""
    if context.open_answers.draining:
        raise shutdown_error()
    async with redis_deadline():
        if any(each.ready for each in (await context.catalog.repository()).values()):
            return
    found = await readiness(context)
    if not found.ready:
        raise Unavailable(found.reason or "no model is ready", retry_after=1)


async def server_metadata() -> Response:
    return json_response(model_views.server_metadata())


async def model_ready(context: Context, caller: Principal, name: str, version: str = "") -> Response:
    (await find(context, caller, name, version)).check_ready(probed=True)
    return Response()


async def model_metadata(context: Context, caller: Principal, name: str, version: str = "") -> Response:
    return json_response(model_views.metadata(await find(context, caller, name, version)))


async def model_config(context: Context, caller: Principal, name: str, version: str = "") -> Response:
    found = await find(context, caller, name, version)
    return Response(model_views.config_json(found.spec), media_type="application/json")


async def model_statistics(context: Context, caller: Principal, name: str, version: str = "") -> Response:
    found = await find(context, caller, name, version)
    return json_response(ModelStatisticsList(model_views.statistics([found])))


async def all_statistics(context: Context, caller: Principal) -> Response:
    found = [ServedModel(status, "") for status in await visible_models(context, caller)]
    return json_response(ModelStatisticsList(model_views.statistics(found)))


async def index(context: Context, caller: Principal, request: Request) -> Response:
    payload = await read_payload(context, request)
    body = validate(payload or b"{}", IndexBody, strict_fields=context.settings.strict_fields)
    found = model_views.index(await visible_models(context, caller), ready_only=bool(body.ready))
    return Response(msgspec.json.encode(found), media_type="application/json")


def both(method: str, suffix: str, handler: Handler, **declared: Any) -> Iterator[Endpoint]:
    """Yield the endpoints of a version and of its model, which the OpenAPI document describes.

    The version comes first: its path would match the model's with another name.
    """
    hidden = {name: value for name, value in declared.items() if name != "summary"}
    yield Endpoint(method, VERSION + suffix, handler, errors=KSERVE, tag="KServe", **hidden)
    yield Endpoint(method, MODEL + suffix, handler, errors=KSERVE, tag="KServe", **declared)


_endpoint = partial(Endpoint, errors=KSERVE, tag="KServe")
_probe = partial(_endpoint, group=None, logged=False, while_draining=True)
ENDPOINTS = (
    _probe("GET", "/v2/health/live", live),
    _probe("GET", "/v2/health/ready", ready),
    _endpoint(
        "GET",
        "/v2",
        server_metadata,
        group="predict",
        summary="Describe the server",
        responses=(ResponseDoc("its name, version and extensions", ServerMetadata),),
        failures=(500, 503),
    ),
    _endpoint(
        "POST",
        "/v2/repository/index",
        index,
        group="predict",
        summary="List the models with their versions",
        body=IndexBody,
        responses=(ResponseDoc("an array of objects with name, version, state and reason"),),
        examples={"Ready models": {"ready": True}},
        failures=(400, 413, 500, 501, 503),
    ),
    _endpoint(
        "GET",
        "/v2/models/stats",
        all_statistics,
        group="predict",
        summary="Get the statistics of all models",
        responses=(ResponseDoc("of each ready version", ModelStatisticsList),),
        failures=(500, 503),
    ),
    *both(
        "GET",
        "/ready",
        model_ready,
        group="predict",
        logged=False,
        summary="Is the model ready?",
        responses=(ResponseDoc("it is"),),
        failures=(404, 500, 503),
    ),
    *both(
        "GET",
        "/stats",
        model_statistics,
        group="predict",
        summary="Get the statistics of a model",
        responses=(ResponseDoc("of each ready version", ModelStatisticsList),),
        failures=(404, 500, 503),
    ),
    *both(
        "GET",
        "/config",
        model_config,
        group="predict",
        summary="Get the configuration of a model",
        responses=(ResponseDoc("a ModelConfig as JSON"),),
        failures=(404, 500, 503),
    ),
)
LAST_ENDPOINTS = tuple(  # their paths match those of all others
    both(
        "GET",
        "",
        model_metadata,
        group="predict",
        summary="Describe a model",
        responses=(ResponseDoc("its versions, inputs and outputs", ModelMetadata),),
        failures=(404, 500, 503),
    )
)
