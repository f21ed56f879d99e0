"""OpenAI's list of models."""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.model_state import ModelState, StateName
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.json_body import json_response
from producer_api.services import Context
from shared.adapters.adapter import Adapter
from shared.models.worker_registry import ModelInfo, Task
from shared.settings import RuntimeName


class Serving(msgspec.Struct):
    """The workers of a model: their runtime, the most sequences in each at a time, and how many are ready.

    `runtime` and `max_num_seqs` are null until a worker has loaded the model. `progress` of loading is from 0 to 1.
    `reason` says why no worker serves it, if that is known.
    """

    runtime: RuntimeName | None
    max_num_seqs: int | None
    workers_ready: int
    state: StateName
    progress: float
    reason: str | None


class Model(msgspec.Struct):
    """One model; `max_model_len`, in tokens, as in vLLM, and `task` are null until a worker has loaded it.

    Of a LoRA adapter, `parent` is its base model and `root` its folder; of a model, `root` is its own name.
    """

    id: str
    created: int
    max_model_len: int | None
    task: Task | None
    root: str
    parent: str | None
    headrace: Serving
    object: Literal["model"] = "model"
    owned_by: str = "headrace"

    @classmethod
    def from_info(
        cls, info: ModelInfo, workers_ready: int, state: ModelState, adapter: Adapter | None = None
    ) -> Model:
        runtime, seats = info.runtime if info.announced else None, info.max_num_seqs or None
        serving = Serving(runtime, seats, workers_ready, state.state, state.progress, state.reason)
        root, parent = (info.name, None) if adapter is None else (adapter.path, adapter.base)
        return cls(info.name, info.created, info.max_model_len or None, info.task, root, parent, serving)


class ModelList(msgspec.Struct):
    data: list[Model]
    object: Literal["list"] = "list"


async def all_models(context: Context, caller: Principal) -> Response:
    async with redis_deadline():
        found, ready = await context.catalog.models(), await context.catalog.ready_workers()
        states, adapters = await context.catalog.states(), await context.catalog.adapters()
    models = [
        Model.from_info(info, ready[info.name], states[info.name], adapters.get(info.name))
        for info in found
        if caller.may_use(info.name)
    ]
    return json_response(ModelList(models))


async def one_model(context: Context, name: str, caller: Principal) -> Response:
    caller.check_model(name)
    async with redis_deadline():
        found, ready = await context.catalog.describe(name), await context.catalog.ready_workers()
        states, adapters = await context.catalog.states(), await context.catalog.adapters()
    return json_response(Model.from_info(found, ready[name], states[name], adapters.get(name)))


_endpoint = partial(Endpoint, group="models", errors=OPENAI, tag="OpenAI")
ENDPOINTS = (
    _endpoint(
        "GET",
        "/v1/models",
        all_models,
        summary="List the models",
        responses=(ResponseDoc("all models that a request may name", ModelList),),
        failures=(500, 503),
    ),
    _endpoint(
        "GET",
        "/v1/models/{name:path}",
        one_model,
        summary="Get a model",
        responses=(ResponseDoc("the model", Model),),
        failures=(404, 500, 503),
    ),
)
