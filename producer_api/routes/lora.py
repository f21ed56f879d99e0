"""vLLM's routes that load and unload LoRA adapters at run time, for keys with the admin scope.

A worker of the base model checks and registers an adapter, and the route waits for its answer. The folder need not
exist on the machine of the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.json_body import read_body
from producer_api.http.open_streams import disconnect
from producer_api.services import Context
from shared.adapters.adapter import (
    MAX_ADAPTERS,
    Adapter,
    AdapterOrder,
    AdapterResult,
    check_adapter_name,
    check_adapter_path,
)
from shared.errors import (
    Conflict,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    NotFound,
    Unavailable,
)
from shared.protocol import new_job_id
from shared.schemas.vllm.adapters import LoadAdapterRequest, UnloadAdapterRequest

RESULT_LIMIT_S = 300.0  # how long a caller waits for an adapter
OUTAGE_LIMIT_S = 5.0  # of Redis, for which a caller waits too: a worker may be about to register the adapter
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.5  # between looks at the outcome; the order is repeated after each


async def load(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, LoadAdapterRequest)
    _check_enabled(context)
    check_adapter_name(body.lora_name)
    check_adapter_path(body.lora_path)
    order = AdapterOrder(
        id=new_job_id(),
        action="load",
        name=body.lora_name,
        base=body.base_model_name or context.catalog.served_model,
        path=body.lora_path,
        replace=body.load_inplace,
    )
    caller.check_model(order.base)
    await context.open_answers.run(_load(context, order), disconnect(request.receive), resumable=False)
    return PlainTextResponse(f"Success: LoRA adapter '{order.name}' added successfully.")


async def unload(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, UnloadAdapterRequest)
    _check_enabled(context)
    async with redis_deadline():
        found = await context.backend.adapters.find(body.lora_name)
        if found is None:
            raise NotFound(f"The lora adapter '{body.lora_name}' cannot be found.", param="lora_name")
        caller.check_model(found.base)
        await context.backend.adapters.remove(found.name)
        order = AdapterOrder(id=new_job_id(), action="unload", name=found.name, base=found.base)
        await context.backend.adapters.place(order)
    context.catalog.forget_snapshot()
    return PlainTextResponse(f"Success: LoRA adapter '{found.name}' removed successfully.")


def _check_enabled(context: Context) -> None:
    settings = context.settings
    if settings.lora_dir is None or not settings.runtime_lora_updating:
        raise NotFound("adapters cannot be loaded at run time: set lora_dir and runtime_lora_updating")


async def _load(context: Context, order: AdapterOrder) -> None:
    """Have a worker register an adapter. Raises InvalidRequest, NotFound, ModelNotFound, Unavailable."""
    async with redis_deadline():
        context.catalog.forget_snapshot()
        await _check_name(context, order)
        workers = await context.catalog.workers(order.base)
    ready = [worker for worker in workers if worker.state == "ready"]
    if not ready:
        raise ModelUnavailable(f"no worker of {order.base!r} is ready to load the adapter", retry_after=1)
    if not any(worker.adapters for worker in ready):
        raise InvalidRequest(
            f"the workers of {order.base!r} load no adapters: their setting lora_dir is not set",
            param="base_model_name",
        )
    result = await _carried_out(context, order)
    context.catalog.forget_snapshot()
    if result.error:
        raise _refusal(order, result)


async def _carried_out(context: Context, order: AdapterOrder) -> AdapterResult:
    """Place an order until it has a result, also while Redis is away for a moment. Raises Unavailable."""
    pause, waited, away = FIRST_PAUSE_S, 0.0, 0.0
    while waited < RESULT_LIMIT_S:
        try:
            async with redis_deadline():
                result = await context.backend.adapters.result(order.id)
                if result is not None:
                    return result
                await context.backend.adapters.place(order)
            away = 0.0
        except Unavailable:
            if away > OUTAGE_LIMIT_S:
                raise
            away += pause
        await asyncio.sleep(pause)
        waited += pause
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise Unavailable(f"no worker of {order.base!r} has loaded the adapter yet", retry_after=1)


async def _check_name(context: Context, order: AdapterOrder) -> None:
    """Raise InvalidRequest for a name that is taken. Raises ModelNotFound for an unknown base model."""
    adapters: Mapping[str, Adapter] = await context.catalog.adapters()
    known = {info.name for info in await context.catalog.models()}
    if order.base in adapters or order.base not in known:
        raise ModelNotFound(f"base_model_name must be a served model, got {order.base!r}", param="base_model_name")
    if order.name in adapters:
        if adapters[order.name].base != order.base:
            raise InvalidRequest(
                f"lora_name {order.name!r} is an adapter of {adapters[order.name].base!r}", param="lora_name"
            )
        if not order.replace:
            raise _already_loaded(order)
    elif order.name in known or order.name in (await context.catalog.traffic()).splits:
        raise InvalidRequest(f"lora_name {order.name!r} is the name of a model", param="lora_name")


def _already_loaded(order: AdapterOrder) -> HeadraceError:
    return InvalidRequest(
        f"The lora adapter '{order.name}' has already been loaded. If you want to load the adapter in place, set "
        "'load_inplace' to True.",
        param="lora_name",
    )


def _refusal(order: AdapterOrder, result: AdapterResult) -> HeadraceError:
    if result.refusal == "exists":
        return _already_loaded(order)
    if result.refusal == "full":
        return Conflict(f"at most {MAX_ADAPTERS} adapters can be registered; unload others first")
    kind = NotFound if result.refusal == "missing" else InvalidRequest
    return kind(result.error, param="lora_path")


_admin = partial(Endpoint, group=None, admin=True, errors=OPENAI, tag="Operation")
ENDPOINTS = (
    _admin(
        "POST",
        "/v1/load_lora_adapter",
        load,
        summary="Load a LoRA adapter, as vLLM does",
        body=LoadAdapterRequest,
        responses=(ResponseDoc("it is registered; requests may name it"),),
        failures=(400, 404, 409, 413, 415, 500, 503),
        examples={
            "A folder in lora_dir": {"lora_name": "sql", "lora_path": "sql-adapter"},
            "In place": {"lora_name": "sql", "lora_path": "sql-adapter-2", "load_inplace": True},
        },
    ),
    _admin(
        "POST",
        "/v1/unload_lora_adapter",
        unload,
        summary="Unload a LoRA adapter, as vLLM does",
        body=UnloadAdapterRequest,
        responses=(ResponseDoc("it is unknown from now on; requests that run with it finish"),),
        failures=(400, 404, 413, 415, 500, 503),
        examples={"By name": {"lora_name": "sql"}},
    ),
)
