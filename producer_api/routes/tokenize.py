"""Tokenizing, detokenizing and the tokenizer's configuration, in vLLM's shape.

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
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.json_body import make_drafts, read_body
from producer_api.openapi.document import parameter
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.services import Context
from shared.protocol import Request as Draft
from shared.schemas.native.tokenize import (
    Detokenized,
    DetokenizeRequest,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
    describe_tokenizer,
)
from shared.token_log.answer import Answer, result_of

TIMEOUT_S = 30.0


async def tokenize(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, TokenizeRequest)
    reply, model = await _ask(context, request, caller, body.to_request)
    async with redis_deadline():
        limit = (await context.catalog.find(model)).max_model_len or None

    def word(answer: Answer) -> Tokens:
        found = result_of(answer)
        strings = list(found.pieces) if body.return_token_strs else None
        return Tokens(len(found.tokens), limit, list(found.tokens), strings)

    return await reply.complete(request, word)


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
