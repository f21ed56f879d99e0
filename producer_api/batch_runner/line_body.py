"""Bodies of batch lines and tasks, read by the API that the URL names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from producer_api.answers.chat import completion
from producer_api.answers.completions import text_completion
from producer_api.answers.embeddings import embedding_list
from producer_api.answers.response_stream import complete_response, with_identity
from producer_api.schemas.batches import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from shared.errors import InvalidRequest
from shared.protocol import PriorityClass, Request
from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.parsing import validate
from shared.token_log.answer import Answer


@dataclass(frozen=True)
class Asked:
    """A parsed body.

    Attributes:
        drafts: one request per prompt or input.
        seed, timeout: the body's fields, if it has them.
        word: makes the response object of the answer, with the fingerprint of the model; raises the error that a
            request failed with.
        classed: the body sets its priority class.
    """

    drafts: tuple[Request, ...]
    seed: int | None
    timeout: float | None
    word: Callable[[Sequence[Request], Answer, str | None], Any]
    classed: bool

    def in_class(self, priority: PriorityClass) -> Asked:
        return replace(self, drafts=tuple(msgspec.structs.replace(each, priority=priority) for each in self.drafts))

    def until(self, deadline: float) -> Asked:
        return replace(self, drafts=tuple(msgspec.structs.replace(each, deadline=deadline) for each in self.drafts))


def read_body(url: str, body: bytes, tenant: str) -> Asked:
    """Parse a body of POST `url`. Raises InvalidRequest, MalformedBody."""
    return READERS[url](body, tenant)


def _chat(body: bytes, tenant: str) -> Asked:
    parsed = validate(body, ChatRequest)
    _not_streamed(parsed.stream)

    def word(requests: Sequence[Request], answer: Answer, fingerprint: str | None) -> Any:
        return completion(requests[0], answer, fingerprint)

    drafts = (parsed.to_request(tenant, stream=False),)
    return Asked(drafts, parsed.seed, parsed.timeout, word, "priority" in parsed.model_fields_set)


def _completion(body: bytes, tenant: str) -> Asked:
    parsed = validate(body, CompletionRequest)
    _not_streamed(parsed.stream)
    drafts = tuple(parsed.to_requests(tenant, stream=False))

    def word(requests: Sequence[Request], answer: Answer, fingerprint: str | None) -> Any:
        return text_completion(requests, answer, echo=bool(parsed.echo), fingerprint=fingerprint)

    return Asked(drafts, parsed.seed, parsed.timeout, word, "priority" in parsed.model_fields_set)


def _embedding(body: bytes, tenant: str) -> Asked:
    parsed = validate(body, EmbeddingRequest)

    def word(requests: Sequence[Request], answer: Answer, _: str | None) -> Any:
        return embedding_list(requests[0], answer, base64=parsed.encoding_format == "base64")

    drafts = tuple(parsed.to_requests(tenant))
    return Asked(drafts, 0, parsed.timeout, word, "priority" in parsed.model_fields_set)


def _response(body: bytes, tenant: str) -> Asked:
    parsed = validate(body, ResponseRequest)
    _not_streamed(parsed.stream)
    for name in ("background", "store", "previous_response_id"):
        if getattr(parsed, name):
            raise InvalidRequest(f"{name} is not supported in batches, whose responses are not stored", param=name)
    asked = msgspec.structs.replace(parsed.to_object(), store=False)

    def word(requests: Sequence[Request], answer: Answer, _: str | None) -> Any:
        return complete_response(with_identity(asked, requests[0]), answer)

    drafts = (parsed.to_request(tenant, [item.to_item() for item in parsed.input]),)
    return Asked(drafts, parsed.seed, parsed.timeout, word, parsed.priority is not None)


def _not_streamed(stream: bool | None) -> None:
    if stream:
        raise InvalidRequest("stream must be false in batches and tasks", param="stream")


READERS = {CHAT: _chat, COMPLETIONS: _completion, EMBEDDINGS: _embedding, RESPONSES: _response}
