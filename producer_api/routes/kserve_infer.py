"""KServe's protocol (v2) over HTTP: inference on tensors, and Triton's generate extension."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.idempotency import HEADER as KEY_HEADER
from producer_api.admission.idempotency import IdempotencyKey
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import ResponseDoc
from producer_api.http.json_body import make_drafts
from producer_api.http.sse import Framing
from producer_api.kserve import infer_body, infer_response, tensor_generation
from producer_api.kserve.content_coding import deflate, read_payload
from producer_api.kserve.infer_body import HEADER, header_length
from producer_api.kserve.parameters import InferCall
from producer_api.kserve.served_models import ServedModel, find
from producer_api.kserve.submission import KIND, submit
from producer_api.kserve.tensor_generation import TensorFraming, only_result
from producer_api.kserve.text_generation import TextResponses, completion
from producer_api.openapi.parameters import IDEMPOTENCY
from producer_api.routes.kserve import both
from producer_api.schemas.kserve import GenerateBody, InferBody, InferResponse
from producer_api.services import Context
from shared.errors import InvalidRequest
from shared.protocol import Result
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.token_log.answer import result_of


async def infer(context: Context, request: Request, caller: Principal, name: str, version: str = "") -> Response:
    model = await find(context, caller, name, version)
    model.check_tensors(streamed=False)
    model.check_ready()
    payload = await read_payload(context, request)
    call, ignored = await context.threads.run(len(payload), partial(_read, context, request, payload, model))
    request.state.facts.report_ignored(ignored)
    key = _key(request, caller, payload)
    admission = await submit(context, caller, model, call.work, key)
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    result = result_of(await reply.answer(request))
    accepted = request.headers.get("accept-encoding", "")
    write = partial(_write, result, call, model, accepted)
    body, headers = await context.threads.run(sum(len(tensor.data) for tensor in result.tensors), write)
    return Response(body, headers={**headers, **reply.headers})


async def generate(context: Context, request: Request, caller: Principal, name: str, version: str = "") -> Response:
    model, body = await _generation(context, request, caller, name, version)
    if model.takes_texts:
        reply = await _text_reply(context, request, caller, model, body)
        content = TextResponses(body, model).whole(await reply.answer(request))
    else:
        call, reply = await _tensor_reply(context, request, caller, model, body)
        result = only_result(await reply.answer(request))
        write = partial(tensor_generation.response, call, model, result)
        content = await context.threads.run(sum(len(tensor.data) for tensor in result.tensors), write)
    return Response(content, headers=reply.headers, media_type="application/json")


async def generate_stream(
    context: Context, request: Request, caller: Principal, name: str, version: str = ""
) -> Response:
    model, body = await _generation(context, request, caller, name, version)
    if model.takes_texts:
        framing: Framing = TextResponses(body, model)
        return (await _text_reply(context, request, caller, model, body)).stream(framing)
    call, reply = await _tensor_reply(context, request, caller, model, body)
    return reply.stream(TensorFraming(call, model))


def _read(context: Context, request: Request, payload: bytes, model: ServedModel) -> tuple[InferCall, str]:
    """Return the request for inference in a body, and its unknown fields. Raises InvalidRequest, NotSupported."""
    length = header_length(request.headers.get(HEADER), len(payload))
    if length == 0 and HEADER in request.headers:
        return infer_body.parse_raw(payload, model.spec, model.version), ""
    strict = context.settings.strict_fields
    call, body = infer_body.parse(payload, length, model.version, strict_fields=strict)
    infer_response.check_forms(call, model.spec)
    return call, ignored_fields(body)


def _write(result: Result, call: InferCall, model: ServedModel, accepted: str) -> tuple[bytes, dict[str, str]]:
    body, headers = infer_response.write(result, call, model.spec)
    return deflate(body, headers, accepted)


def _key(request: Request, caller: Principal, payload: bytes) -> IdempotencyKey | None:
    """Return the client's key for this path and body. Raises InvalidRequest."""
    given = request.headers.getlist(KEY_HEADER)
    if not given:
        return None
    place = f"{request.url.path} {request.headers.get(HEADER)} "
    body = place + hashlib.sha256(payload).hexdigest()
    return IdempotencyKey.from_header(given, tenant=caller.tenant, kind=KIND, body=body)


async def _generation(
    context: Context, request: Request, caller: Principal, name: str, version: str
) -> tuple[ServedModel, GenerateBody]:
    """Return the model that is to generate, and what from."""
    model = await find(context, caller, name, version)
    if model.takes_texts and model.status.task not in ("generate", None):
        raise InvalidRequest(f"{name} generates no text; its task is {model.status.task}", param="model")
    payload = await read_payload(context, request)
    body = await context.threads.run(len(payload), partial(validate, payload, GenerateBody))
    return model, body


async def _text_reply(
    context: Context, request: Request, caller: Principal, model: ServedModel, body: GenerateBody
) -> Reply:
    made = completion(body, model, strict_fields=context.settings.strict_fields)
    request.state.facts.report_ignored(ignored_fields(made))
    [draft] = await make_drafts(request, lambda: made.to_requests(caller.tenant))
    key = _key(request, caller, await request.body())
    admission = await context.gateway.submit(
        draft, principal=caller, seed=made.given_seed, timeout_s=made.timeout, key=key
    )
    return Reply(context, request.state.facts, admission, detached=key is not None)


async def _tensor_reply(
    context: Context, request: Request, caller: Principal, model: ServedModel, body: GenerateBody
) -> tuple[InferCall, Reply]:
    model.check_tensors(streamed=True)
    model.check_ready()
    make: Callable[[], InferCall] = partial(tensor_generation.tensor_call, body, model)
    payload = await request.body()
    call = await context.threads.run(len(payload), make)
    infer_response.check_forms(call, model.spec)
    key = _key(request, caller, payload)
    admission = await submit(context, caller, model, call.work, key)
    return call, Reply(context, request.state.facts, admission, detached=key is not None)


_FAILURES = (400, 404, 409, 413, 422, 429, 500, 501, 503, 504)
_GENERATION: dict[str, Any] = {
    "group": "predict",
    "charged": True,
    "body": GenerateBody,
    "parameters": [IDEMPOTENCY],
    "failures": _FAILURES,
    "examples": {"A text": {"text_input": "Rivers are", "max_tokens": 32}},
}
ENDPOINTS = (
    *both(
        "POST",
        "/infer",
        infer,
        group="predict",
        charged=True,
        summary="Infer tensors from tensors",
        body=InferBody,
        parameters=[IDEMPOTENCY],
        responses=(ResponseDoc("the outputs; binary data follow the JSON", InferResponse),),
        failures=_FAILURES,
        examples={
            "One row": {"inputs": [{"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        },
    ),
    *both(
        "POST",
        "/generate",
        generate,
        summary="Generate from a text, or from tensors",
        responses=(ResponseDoc("id, model_name, model_version, text_output, or the model's outputs"),),
        **_GENERATION,
    ),
    *both(
        "POST",
        "/generate_stream",
        generate_stream,
        summary="Generate from a text, or from tensors, as a stream",
        responses=(ResponseDoc("events of the same fields", events=()),),
        **_GENERATION,
    ),
)
