"""The load of a model, for autoscalers that read JSON, such as KEDA's metrics-api."""

from __future__ import annotations

from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.scaling import ModelLoad, load_of
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.services import Context


async def scaling(context: Context, name: str) -> Response:
    async with redis_deadline():
        load = await load_of(context.backend, context.catalog, name, default_seats=context.settings.max_num_seqs)
    return json_response(load)


ADMIN_ENDPOINTS = (
    Endpoint(
        "GET",
        "/admin/scaling/{name:path}",
        scaling,
        group=None,
        admin=True,
        logged=False,
        tag="Operation",
        summary="How many workers does a model need?",
        responses=(ResponseDoc("the model's load; every number is finite", ModelLoad),),
        failures=(404, 500, 503),
    ),
)
