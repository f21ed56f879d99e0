"""Triton's extensions of KServe's protocol (v2) that administer a server: models, logs, traces, shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import KSERVE
from producer_api.http.open_streams import disconnect
from producer_api.kserve.content_coding import read_payload
from producer_api.kserve.repository_control import carry_out, load_order, unload_order
from producer_api.kserve.server_settings import LOGGING, TRACING, check_unchanged, shared_memory_refusal
from producer_api.schemas.kserve import ControlBody
from producer_api.services import Context
from shared.errors import InvalidRequest, MalformedBody
from shared.repository.store import ModelOrder
from shared.schemas.parsing import validate

EMPTY: Mapping[str, Any] = MappingProxyType({})


async def load(context: Context, request: Request, name: str) -> Response:
    payload = await read_payload(context, request)

    def read() -> ModelOrder:
        body = validate(payload or b"{}", ControlBody)
        return load_order(name, body.parameters or EMPTY)

    return await _carry_out(context, request, await context.threads.run(len(payload), read))


async def unload(context: Context, request: Request, name: str) -> Response:
    payload = await read_payload(context, request)
    parameters = validate(payload or b"{}", ControlBody).parameters or EMPTY
    dependents = parameters.get("unload_dependents", False)
    if not isinstance(dependents, bool):
        raise InvalidRequest("unload_dependents must be true or false", param="unload_dependents")
    return await _carry_out(context, request, unload_order(name, dependents=dependents))


async def logging(context: Context, request: Request) -> Response:
    return await _settings(context, request, LOGGING)


async def tracing(context: Context, request: Request, name: str = "") -> Response:
    return await _settings(context, request, TRACING)


async def system_memory(region: str = "") -> Response:
    raise shared_memory_refusal("system")


async def cuda_memory(region: str = "") -> Response:
    raise shared_memory_refusal("CUDA")


async def _carry_out(context: Context, request: Request, order: ModelOrder) -> Response:
    await context.open_answers.run(
        carry_out(context, request.state.facts.caller, order), disconnect(request.receive), resumable=False
    )
    return Response(media_type="application/json")


async def _settings(context: Context, request: Request, current: Mapping[str, Any]) -> Response:
    payload = await read_payload(context, request)
    try:
        wanted = msgspec.json.decode(payload or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise MalformedBody("the body must be a JSON object") from None
    check_unchanged(wanted, current)
    return Response(msgspec.json.encode(dict(current)), media_type="application/json")


_admin = partial(Endpoint, group=None, admin=True, errors=KSERVE, tag="KServe")
_CONTROL: dict[str, Any] = {"body": ControlBody, "failures": (400, 404, 413, 500, 501, 503)}
CONTROL_ENDPOINTS = (
    _admin(
        "POST",
        "/v2/repository/models/{name}/load",
        load,
        summary="Load a model, or load it again",
        responses=(ResponseDoc("it is loaded"),),
        examples={"As in the repository": {}, "As described": {"parameters": {"config": '{"max_batch_size": 8}'}}},
        **_CONTROL,
    ),
    _admin(
        "POST",
        "/v2/repository/models/{name}/unload",
        unload,
        summary="Unload a model",
        responses=(ResponseDoc("it is unloaded"),),
        examples={"An ensemble and its models": {"parameters": {"unload_dependents": True}}},
        **_CONTROL,
    ),
)
ENDPOINTS = (
    *CONTROL_ENDPOINTS,
    *(_admin(method, "/v2/logging", logging) for method in ("GET", "POST")),
    *(_admin(method, "/v2/trace/setting", tracing) for method in ("GET", "POST")),
    *(_admin(method, "/v2/models/{name:path}/trace/setting", tracing) for method in ("GET", "POST")),
    *(
        _admin(method, f"/v2/{kind}sharedmemory{place}/{action}", handler)
        for kind, handler in (("system", system_memory), ("cuda", cuda_memory))
        for place in ("", "/region/{region}")
        for method, action in (("GET", "status"), ("POST", "register"), ("POST", "unregister"))
    ),
)
