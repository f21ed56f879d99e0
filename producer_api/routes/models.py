"""OpenAI's list of models."""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.json_body import json_response
from producer_api.services import Context
from shared.models.worker_registry import ModelInfo, Task


class Model(msgspec.Struct):
    """One model; our fields `max_model_len`, in tokens, and `task` are null until a worker has loaded it."""

    id: str
    created: int
    max_model_len: int | None
    task: Task | None
    object: Literal["model"] = "model"
    owned_by: str = "headrace"

    @classmethod
    def of(cls, info: ModelInfo) -> Model:
        return cls(info.name, info.created, info.max_model_len or None, info.task)


class ModelList(msgspec.Struct):
    data: list[Model]
    object: Literal["list"] = "list"


async def all_models(context: Context, caller: Principal) -> Response:
    async with redis_deadline():
        found = await context.catalog.models()
    return json_response(ModelList([Model.of(info) for info in found if caller.may_use(info.name)]))


async def one_model(context: Context, name: str, caller: Principal) -> Response:
    caller.check_model(name)
    async with redis_deadline():
        return json_response(Model.of(await context.catalog.find(name)))


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
