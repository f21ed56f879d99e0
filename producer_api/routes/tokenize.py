"""Tokenizing and detokenizing, in vLLM's shape.

A worker of the model does it, through the queue, so that the front end needs no model files. It waits its turn like
any request, for at most TIMEOUT_S.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.json_body import make_drafts, read_body
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.services import Context
from shared.schemas.native.tokenize import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from shared.token_log.answer import Answer, result_of

TIMEOUT_S = 30.0


async def tokenize(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, TokenizeRequest)
    reply = await _ask(context, request, caller, body)
    async with redis_deadline():
        limit = (await context.catalog.find(body.model)).max_model_len or None

    def word(answer: Answer) -> Tokens:
        found = result_of(answer)
        strings = list(found.pieces) if body.return_token_strs else None
        return Tokens(len(found.tokens), limit, list(found.tokens), strings)

    return await reply.complete(request, word)


async def detokenize(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, DetokenizeRequest)
    reply = await _ask(context, request, caller, body)
    return await reply.complete(request, lambda answer: Detokenized(result_of(answer).text))


async def _ask(
    context: Context, request: Request, caller: Principal, body: TokenizeRequest | DetokenizeRequest
) -> Reply:
    [draft] = await make_drafts(request, lambda: [body.to_request(caller.tenant)])
    admission = await context.gateway.submit(draft, principal=caller, seed=0, timeout_s=TIMEOUT_S)
    return Reply(context, request.state.facts, admission, detached=False)


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
)
