"""OpenAI's completions of plain texts, streamed or complete; one HTTP request may have several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.parsed_body import ParsedBody, refuse_stream
from producer_api.answers.answer_form import AnswerForm
from producer_api.answers.completions import TextFraming, text_completion
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.errors import OPENAI
from producer_api.http.headers import idempotency_key, resume_points
from producer_api.http.json_body import make_drafts, read_body
from producer_api.openapi.examples import SERVED_MODEL
from producer_api.openapi.parameters import IDEMPOTENCY, LAST_EVENT_IDS, NOTHING_LEFT
from producer_api.services import Context
from shared.protocol import Request as Draft
from shared.schemas.openai.completions import Completion, CompletionRequest
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.token_log.answer import Answer, before_end, nothing_after


async def create(context: Context, request: Request, caller: Principal) -> Response:
    body = await read_body(request, CompletionRequest)
    return await answer(context, request, caller, body)


async def answer(context: Context, request: Request, caller: Principal, body: CompletionRequest) -> Response:
    stream, form = bool(body.stream), AnswerForm.from_body(body)
    made = await make_drafts(request, lambda: body.to_requests(caller.tenant))
    key = await idempotency_key(request, tenant=caller.tenant, kind="completion", body=body)
    after = resume_points(request, len(made), resumable=stream and key is not None)
    resumed = max(after) >= 0
    admission = await context.gateway.submit_all(
        made, principal=caller, seed=body.given_seed, timeout_s=body.timeout, key=key, resuming=resumed
    )
    requests = admission.requests
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    fingerprint = await context.gateway.fingerprint(admission.request)
    if not stream:
        return await reply.complete(request, partial(text_completion, requests, form=form, fingerprint=fingerprint))
    prompt_tokens = [0] * len(requests)
    if resumed:
        records = [await context.request_control.record(each.id, caller.tenant) for each in requests]
        if all(nothing_after(record, seq) for record, seq in zip(records, after, strict=True)):
            return Response(status_code=204)
        after = [before_end(record, seq) for record, seq in zip(records, after, strict=True)]
        prompt_tokens = [record.prompt_tokens for record in records]
    framing = TextFraming(
        requests,
        form,
        after=after,
        prompt_tokens=prompt_tokens,
        resumable=key is not None,
        fingerprint=fingerprint,
    )
    again = resumed and body.logprobs is not None  # their text offsets depend on the text before
    return reply.stream(framing, after=after, eager=resumed, again=again)


def parse_completion(data: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
    """Read a body outside of HTTP. Raises InvalidRequest, MalformedBody."""
    body = validate(data, CompletionRequest, strict_fields=strict_fields)
    refuse_stream(body.stream)
    form = AnswerForm.from_body(body)

    def word(requests: Sequence[Draft], answer: Answer, fingerprint: str | None) -> Completion:
        return text_completion(requests, answer, form, fingerprint)

    drafts = tuple(body.to_requests(tenant))
    return ParsedBody(drafts, body.given_seed, body.timeout, word, body.priority is not None, ignored_fields(body))


_TEXT = {"model": SERVED_MODEL, "prompt": "Rivers are", "max_tokens": 32}
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        create,
        group="completions",
        errors=OPENAI,
        charged=True,
        batchable=parse_completion,
        summary="Complete texts",
        tag="OpenAI",
        body=CompletionRequest,
        parameters=[IDEMPOTENCY, LAST_EVENT_IDS],
        responses=(
            ResponseDoc(
                "the completion; with `stream`, chunks of the same shape", Completion, events=(Completion,)
            ),
            NOTHING_LEFT,
        ),
        failures=(400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
        examples={
            "A text": _TEXT,
            "Several prompts, streamed": {**_TEXT, "prompt": ["Rivers are", "Mills are"], "stream": True},
            "Echo, with log-probabilities": {**_TEXT, "max_tokens": 1, "echo": True, "logprobs": 1},
        },
    ),
)
