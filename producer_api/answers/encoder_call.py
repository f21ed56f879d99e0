"""One API of models that do not generate: how its body becomes requests, and their answer its response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.parsed_body import ParsedBody
from producer_api.answers.reply import Reply
from producer_api.auth.principal import Principal
from producer_api.http.headers import idempotency_key
from producer_api.http.json_body import make_drafts, read_body
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.text_classification import TextClassificationRequest
from producer_api.services import Context
from shared.protocol import Request as Draft
from shared.schemas.encoder_fields import EncoderFields
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import ignored_fields
from shared.token_log.answer import Answer

BodyType = TypeVar("BodyType", bound=EncoderFields)
EncoderBody = EncoderFields | FeatureExtractionRequest | TextClassificationRequest


async def encode(
    context: Context,
    request: Request,
    caller: Principal,
    body: EncoderBody,
    word: Callable[[Draft, Answer], Any],
    *,
    kind: str,
    timeout_s: float | None = None,
) -> Response:
    """Queue the requests of a body and wait for their answers; `kind` is that of the call's idempotency keys."""
    key = await idempotency_key(request, tenant=caller.tenant, kind=kind, body=body)
    made = await make_drafts(request, lambda: body.to_requests(caller.tenant))
    admission = await context.gateway.submit_all(made, principal=caller, seed=0, timeout_s=timeout_s, key=key)
    reply = Reply(context, request.state.facts, admission, detached=key is not None)
    return await reply.complete(request, lambda answer: word(admission.request, answer))


@dataclass(frozen=True)
class EncoderCall(Generic[BodyType]):
    """Handler of an API's requests.

    Attributes:
        kind: of its idempotency keys.
        schema: of its body.
        word: makes the response, given the first of the requests that share the work.
    """

    kind: str
    schema: type[BodyType]
    word: Callable[[BodyType, Draft, Answer], Any]

    async def create(self, context: Context, request: Request, caller: Principal) -> Response:
        body = await read_body(request, self.schema)
        word = partial(self.word, body)
        return await encode(context, request, caller, body, word, kind=self.kind, timeout_s=body.timeout)

    def parse(self, data: bytes, tenant: str, *, strict_fields: bool) -> ParsedBody:
        """Read a body outside of HTTP. Raises InvalidRequest, MalformedBody."""
        body = validate(data, self.schema, strict_fields=strict_fields)

        def word(requests: Sequence[Draft], answer: Answer, _: str | None) -> Any:
            return self.word(body, requests[0], answer)

        return ParsedBody(
            tuple(body.to_requests(tenant)),
            0,
            body.timeout,
            word,
            body.priority is not None,
            ignored_fields(body),
        )
