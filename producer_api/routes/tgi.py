"""TGI's API: answers to raw prompts, and the server's description.

Its other routes are in `task`, which does other tasks too, and in `tokenize`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.answers.reply import Reply
from producer_api.answers.tgi import (
    GenerationForm,
    GenerationFraming,
    generation,
    generation_headers,
)
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import TGI
from producer_api.http.headers import idempotency_key, resume_point
from producer_api.http.json_body import json_response, make_drafts, read_body
from producer_api.http.threads import THREADS
from producer_api.openapi.parameters import IDEMPOTENCY, LAST_EVENT_ID, NOTHING_LEFT
from producer_api.schemas.tgi import GenerateRequest, TgiLimits
from producer_api.schemas.tgi_answers import Generation, GenerationChunk, ServerInfo
from producer_api.services import Context
from shared.models.worker_registry import ModelInfo
from shared.protocol import Request as Draft
from shared.token_log.answer import Answer, before_end, nothing_after
from shared.validation.length_limits import LengthLimits
from shared.validation.request_limits import check_model_name

PIPELINE_TAGS = {"generate": "text-generation", "embed": "feature-extraction"}


async def generate(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, GenerateRequest)
    return await answer(context, request, caller, body, await model_of(context, caller, body.model), stream=False)


async def generate_stream(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, GenerateRequest)
    return await answer(context, request, caller, body, await model_of(context, caller, body.model), stream=True)


async def answer(
    context: Context,
    request: Request,
    caller: Principal,
    body: GenerateRequest,
    model: ModelInfo,
    *,
    stream: bool,
    as_list: bool = False,
) -> Response:
    """Answer a prompt. With `as_list`, a complete answer is the only entry of a list."""
    body = body.model_copy(update={"model": model.name})
    limits, form = limits_of(context, model), GenerationForm.from_body(body)
    [draft] = await make_drafts(request, lambda: [body.to_request(caller.tenant, limits, stream=stream)])
    key = await idempotency_key(request, tenant=caller.tenant, kind=f"generate-{stream}", body=body)
    after = resume_point(request, resumable=stream and key is not None)
    headers = await _headers(context, model.name, body.inputs)
    admission = await context.gateway.submit(
        draft, principal=caller, seed=body.given_seed, key=key, resuming=after >= 0
    )
    started = request.state.facts.started
    validated = time.perf_counter() - started
    admitted = admission.request
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    if stream:
        return await _stream(
            context, reply, admitted, form, after=after, resumable=key is not None, headers=headers
        )

    def to_body(found: Answer) -> Generation | list[Generation]:
        made = generation(admitted, found, form)
        return [made] if as_list else made

    def to_headers(found: Answer) -> Mapping[str, str]:
        return {**headers, **generation_headers(found, validated, time.perf_counter() - started)}

    return await reply.complete(request, to_body, to_headers)


async def _stream(
    context: Context,
    reply: Reply,
    admitted: Draft,
    form: GenerationForm,
    *,
    after: int,
    resumable: bool,
    headers: Mapping[str, str],
) -> Response:
    resumed = after >= 0
    if resumed:
        record = await context.request_control.record(admitted.id, admitted.tenant)
        if nothing_after(record, after):
            return Response(status_code=204)
        after = before_end(record, after)
    framing = GenerationFraming(admitted, form, after=after, resumable=resumable)
    return reply.stream(framing, after=after, eager=resumed, again=resumed, headers=headers)


async def info(context: Context, request: Request, caller: Principal) -> Response:
    """Describe the default model and the bounds on requests."""
    settings = context.settings
    model = await model_of(context, caller, "")
    lengths = _lengths(context, model)
    found = ServerInfo(
        model_id=model.name,
        model_pipeline_tag=PIPELINE_TAGS.get(model.task or "generate"),
        max_concurrent_requests=settings.queue_depth,
        max_best_of=TgiLimits.from_settings(settings, None).best_of,
        max_stop_sequences=settings.max_stop_sequences,
        max_input_tokens=lengths.most_input,
        max_total_tokens=lengths.most_total,
        validation_workers=THREADS,
        max_client_batch_size=settings.max_client_batch_size,
        version=request.app.version,
    )
    return json_response(found)


async def model_of(context: Context, caller: Principal, name: str) -> ModelInfo:
    """Return the model that a body of TGI's API means by `name`.

    Raises InvalidRequest, PermissionDenied, ModelNotFound, Unavailable.
    """
    async with redis_deadline():
        meant = await context.catalog.named(name)
        check_model_name(meant)
        caller.check_model(meant)
        return await context.catalog.find(meant)


def limits_of(context: Context, model: ModelInfo) -> TgiLimits:
    """Return the bounds on a request for the model."""
    return TgiLimits.from_settings(context.settings, _lengths(context, model).most_input or None)


def _lengths(context: Context, model: ModelInfo) -> LengthLimits:
    known = model.max_model_len or context.settings.max_total_tokens or 0
    return LengthLimits.from_settings(context.settings, known)


async def _headers(context: Context, model: str, inputs: str) -> dict[str, str]:
    """Return TGI's headers that are known before the answer."""
    async with redis_deadline():
        workers = await context.catalog.workers(model)
    kind = "gpu" if any(worker.gpu_memory_used is not None for worker in workers) else "cpu"
    return {"x-compute-type": kind, "x-compute-characters": str(len(inputs))}


_PROMPT = {"inputs": "Rivers are", "parameters": {"max_new_tokens": 32}}
_endpoint = partial(
    Endpoint,
    "POST",
    group="completions",
    errors=TGI,
    charged=True,
    tag="TGI",
    failures=(404, 409, 413, 415, 422, 424, 429, 500, 503, 504),
)
ENDPOINTS = (
    _endpoint(
        "/generate",
        generate,
        summary="Continue a text",
        body=GenerateRequest,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the continuation", Generation),),
        examples={
            "A text": _PROMPT,
            "With the details of each token": {
                "inputs": "Rivers are",
                "parameters": {"max_new_tokens": 4, "details": True, "top_n_tokens": 2},
            },
        },
    ),
    _endpoint(
        "/generate_stream",
        generate_stream,
        summary="Continue a text, token by token",
        body=GenerateRequest,
        parameters=[IDEMPOTENCY, LAST_EVENT_ID],
        responses=(ResponseDoc("the tokens", events=(GenerationChunk,)), NOTHING_LEFT),
        examples={"A text": _PROMPT},
    ),
    Endpoint(
        "GET",
        "/info",
        info,
        group="models",
        errors=TGI,
        summary="Describe the server",
        tag="TGI",
        responses=(ResponseDoc("the default model and the bounds on requests", ServerInfo),),
        failures=(503,),
    ),
)
