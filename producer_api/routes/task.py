"""The routes that do what the model is for: `/`, `/models/NAME` and `/invocations`.

huggingface_hub's `InferenceClient` sends every task to the URL that it is given, and SageMaker to `/invocations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from producer_api.answers.encoder_call import encode
from producer_api.answers.encoders import label_scores, vectors
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import TGI
from producer_api.http.json_body import Peeked, peek, read_body
from producer_api.openapi.parameters import IDEMPOTENCY, LAST_EVENT_ID, NOTHING_LEFT
from producer_api.routes import chat, completions, tgi
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.text_classification import TextClassificationRequest
from producer_api.schemas.tgi import GenerateRequest
from producer_api.schemas.tgi_answers import GenerationChunk
from producer_api.services import Context
from shared.errors import InvalidRequest
from shared.models.worker_registry import ModelInfo, Task
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest

FULL_TEXT = {"return_full_text": True}  # TGI's default on these routes


Asked = TypeVar("Asked", ChatRequest, CompletionRequest)


class Answerer(Protocol):
    """Handler of a task's requests."""

    async def __call__(
        self, context: Context, request: Request, caller: Principal, model: ModelInfo
    ) -> Response: ...


@dataclass(frozen=True)
class TaskApi:
    """API of one task: the scope that a key needs for it, and its handler."""

    group: str
    answer: Answerer


async def run_task(context: Context, request: Request, caller: Principal) -> Response:
    """Do the task of the model that the body names, by default of the served one."""
    return await _run_named(context, request, caller, await peek(request))


async def run_model_task(context: Context, request: Request, caller: Principal, name: str) -> Response:
    """Do the task of the model that the path names."""
    return await _run_task(context, request, caller, await tgi.model_of(context, caller, name))


async def invoke(context: Context, request: Request, caller: Principal) -> Response:
    """Answer a body of `/`, of OpenAI's chats, or of its completions."""
    body = await peek(request)
    if body.has("inputs"):
        return await _run_named(context, request, caller, body)
    if body.has("messages"):
        caller.check_route("chat", admin=False)
        asked = await _named(context, caller, await read_body(request, ChatRequest))
        return await chat.answer(context, request, caller, asked, stream=bool(asked.stream))
    if body.has("prompt"):
        return await completions.answer(
            context, request, caller, await _named(context, caller, await read_body(request, CompletionRequest))
        )
    return await _run_named(context, request, caller, body)


async def _named(context: Context, caller: Principal, body: Asked) -> Asked:
    """Return the body with the name of the model that it means."""
    return body.model_copy(update={"model": (await tgi.model_of(context, caller, body.model)).name})


async def _run_named(context: Context, request: Request, caller: Principal, body: Peeked) -> Response:
    return await _run_task(context, request, caller, await tgi.model_of(context, caller, body.model_name))


async def _run_task(context: Context, request: Request, caller: Principal, model: ModelInfo) -> Response:
    api = TASKS[model.task or "generate"]
    caller.check_route(api.group, admin=False)
    return await api.answer(context, request, caller, model)


async def generate(context: Context, request: Request, caller: Principal, model: ModelInfo) -> Response:
    body = await read_body(request, GenerateRequest)
    if body.given.return_full_text is None:
        body = body.model_copy(update={"parameters": body.given.model_copy(update=FULL_TEXT)})
    return await tgi.answer(context, request, caller, body, model, stream=bool(body.stream), as_list=True)


async def embed(context: Context, request: Request, caller: Principal, model: ModelInfo) -> Response:
    body = (await read_body(request, FeatureExtractionRequest)).model_copy(update={"model": model.name})
    return await encode(context, request, caller, body, lambda _, answer: vectors(answer), kind=type(body).__name__)


async def classify(context: Context, request: Request, caller: Principal, model: ModelInfo) -> Response:
    body = (await read_body(request, TextClassificationRequest)).model_copy(update={"model": model.name})
    return await encode(
        context, request, caller, body, lambda _, answer: label_scores(body, answer), kind=type(body).__name__
    )


async def refuse(context: Context, request: Request, caller: Principal, model: ModelInfo) -> Response:
    raise InvalidRequest(
        f"{model.name} is a tensor model: send its tensors to /v2/models/{model.name}/infer", param="model"
    )


TASKS: Mapping[Task, TaskApi] = {
    "generate": TaskApi("completions", generate),
    "embed": TaskApi("embeddings", embed),
    "classify": TaskApi("embeddings", classify),
    "predict": TaskApi("completions", refuse),
}
_ANSWER = ResponseDoc(
    "by the model's task: a list with the continuation, or tokens if `stream` is true; or a vector or the classes "
    "for each input",
    events=(GenerationChunk,),
    schema={"type": ["array", "object"]},
)
_endpoint = partial(
    Endpoint,
    "POST",
    group="completions",
    errors=TGI,
    charged=True,
    tag="TGI",
    body=GenerateRequest,
    parameters=[IDEMPOTENCY, LAST_EVENT_ID],
    responses=(_ANSWER, NOTHING_LEFT),
    failures=(404, 409, 413, 415, 422, 424, 429, 500, 503, 504),
    examples={"A text": {"inputs": "Rivers are", "parameters": {"max_new_tokens": 32}}},
)
ENDPOINTS = (
    _endpoint("/", run_task, summary="Do what the model is for"),
    _endpoint("/models/{name:path}", run_model_task, summary="Do what the model that the path names is for"),
    _endpoint("/invocations", invoke, summary="Do what the model is for, or answer a body of OpenAI's API"),
)
