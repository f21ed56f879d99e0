"""OpenAI's list of models."""

from __future__ import annotations

from typing import Literal

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Caller
from producer_api.http.endpoint import Route
from producer_api.http.json_body import json_answer
from producer_api.openapi.document import failures, struct_response
from producer_api.services import Context
from shared.models.worker_registry import ModelInfo, Task


class Model(msgspec.Struct):
    """One model; `max_model_len` in tokens and `task` are ours, null while no worker has loaded it."""

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


def models_router(context: Context) -> APIRouter:
    router = APIRouter(
        route_class=Route, prefix="/v1/models", tags=["OpenAI"], dependencies=[context.allow("models")]
    )

    @router.get(
        "",
        summary="List the models",
        responses={**failures("openai", 500, 503), 200: struct_response("all that a request may name", ModelList)},
    )
    async def all_models(caller: Caller) -> Response:
        async with redis_deadline():
            found = await context.catalog.models()
        return json_answer(ModelList([Model.of(info) for info in found if caller.may_use(info.name)]))

    @router.get(
        "/{name:path}",
        summary="See a model",
        responses={**failures("openai", 404, 500, 503), 200: struct_response("the model", Model)},
    )
    async def one_model(name: str, caller: Caller) -> Response:
        caller.check_model(name)
        async with redis_deadline():
            return json_answer(Model.of(await context.catalog.find(name)))

    return router
