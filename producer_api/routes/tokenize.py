"""Tokenizing, detokenizing and the tokenizer's configuration, in vLLM's shape; tokenizing also in TGI's.

A worker of the model does it, through the queue, so that the front end needs no model files. It waits its turn like
any request, for at most TIMEOUT_S.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.answers.reply import Reply
from producer_api.answers.tgi import token_spans, tokenized_chat
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.endpoint_table import answer_errors_in
from producer_api.http.errors import OPENAI, TGI
from producer_api.http.json_body import make_drafts, peek, read_body
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.openapi.parameters import parameter
from producer_api.routes.tgi import limits_of, model_of
from producer_api.schemas.tgi import GenerateRequest
from producer_api.schemas.tgi_answers import TokenizedChat
from producer_api.services import Context
from shared.protocol import Request as Draft
from shared.protocol import SamplingParams, Tokenize
from shared.schemas.native.tokenize import (
    Detokenized,
    DetokenizeRequest,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
    describe_tokenizer,
)
from shared.schemas.openai.chat import ChatRequest
from shared.token_log.answer import Answer, result_of

TIMEOUT_S = 30.0


async def tokenize(context: Context, request: Request, caller: Principal) -> Response:
    """Tokenize a body of vLLM's, or one of TGI's, which has `inputs`; each is answered in its own shape."""
    given = await peek(request)
    if given.has("inputs") and not (given.has("prompt") or given.has("messages")):
        answer_errors_in(request.scope, TGI)
        return await _tokenize_inputs(context, request, caller)
    body = await read_body(request, TokenizeRequest)
    reply, model = await _ask(context, request, caller, body.to_request)
    async with redis_deadline():
        limit = (await context.catalog.find(model)).max_model_len or None

    def word(answer: Answer) -> Tokens:
        found = result_of(answer)
        strings = list(found.pieces) if body.return_token_strs else None
        return Tokens(len(found.tokens), limit, list(found.tokens), strings)

    return await reply.complete(request, word)


async def _tokenize_inputs(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, GenerateRequest)
    model = await model_of(context, caller, body.model)
    body, limits = body.model_copy(update={"model": model.name}), limits_of(context, model)
    reply, _ = await _ask(context, request, caller, partial(body.to_tokenization, limits=limits))
    return await reply.complete(request, lambda answer: token_spans(body.inputs, result_of(answer)))


async def chat_tokenize(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, ChatRequest)
    model = await model_of(context, caller, body.model)

    def to_draft(tenant: str) -> Draft:
        made = {"model": model.name, "params": SamplingParams(), "work": Tokenize(texts=True)}
        return msgspec.structs.replace(body.to_request(tenant), **made)

    reply, _ = await _ask(context, request, caller, to_draft)
    return await reply.complete(request, lambda answer: tokenized_chat(result_of(answer)))


async def detokenize(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, DetokenizeRequest)
    reply, _ = await _ask(context, request, caller, body.to_request)
    return await reply.complete(request, lambda answer: Detokenized(result_of(answer).text))


async def tokenizer_info(context: Context, request: Request, caller: Principal) -> Response:
    """The body is what the worker wrote: the fields of a checkpoint's tokenizer_config.json are open."""
    named = request.query_params.get("model", "")
    reply, _ = await _ask(context, request, caller, partial(describe_tokenizer, model=named))
    return await reply.complete(request, lambda answer: msgspec.Raw(result_of(answer).text.encode()))


async def _ask(
    context: Context, request: Request, caller: Principal, to_draft: Callable[[str], Draft]
) -> tuple[Reply, str]:
    """Submit the draft that `to_draft` makes for a tenant, by default for the served model; return its model too.

    lm-eval's remote tokenizer, written for vLLM, names no model.
    """

    def draft_of_tenant() -> Draft:
        made = to_draft(caller.tenant)
        return made if made.model else msgspec.structs.replace(made, model=context.catalog.served_model)

    [draft] = await make_drafts(request, lambda: [draft_of_tenant()])
    admission = await context.gateway.submit(draft, principal=caller, seed=0, timeout_s=TIMEOUT_S)
    return Reply(context, request.state.facts, admission, detached=False), draft.model


_endpoint = partial(
    Endpoint,
    group="tokenize",
    errors=OPENAI,  # as vLLM has it
    charged=True,
    tag="Tokens",
    failures=(400, 404, 409, 413, 415, 429, 500, 503, 504),
)
ENDPOINTS = (
    _endpoint(
        "POST",
        "/tokenize",
        tokenize,
        summary="Turn a text or a chat into token ids",
        body=TokenizeRequest,
        responses=(ResponseDoc("the token ids", Tokens),),
        examples={
            "A text": {"model": SERVED_MODEL, "prompt": "Rivers are", "return_token_strs": True},
            "A chat": {
                "model": SERVED_MODEL,
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
            },
        },
    ),
    _endpoint(
        "POST",
        "/chat_tokenize",
        chat_tokenize,
        errors=TGI,
        failures=(404, 409, 413, 415, 422, 424, 429, 500, 503, 504),
        summary="Turn a chat into its text and tokens",
        tag="TGI",
        body=ChatRequest,
        responses=(ResponseDoc("the text and its tokens", TokenizedChat),),
        examples={
            "A question": {
                "model": SERVED_MODEL,
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
            }
        },
    ),
    _endpoint(
        "POST",
        "/detokenize",
        detokenize,
        summary="Turn token ids into their text",
        body=DetokenizeRequest,
        responses=(ResponseDoc("the text", Detokenized),),
        examples={"Two tokens": {"model": SERVED_MODEL, "tokens": [40, 41]}},
    ),
    _endpoint(
        "GET",
        "/tokenizer_info",
        tokenizer_info,
        summary="Get the tokenizer's special tokens and chat template",
        parameters=[parameter("model", "query", "default: the served model", type="string")],
        responses=(ResponseDoc("the fields of the checkpoint's tokenizer_config.json", TokenizerInfo),),
    ),
)
